"""pytest tests/data/test_duplicates.py: what a set holds twice is found, and nothing else is taken for it."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_sample_images

from vismoe.data import find_duplicates, fingerprint, fingerprint_all, open_data
from vismoe.data.splits.fingerprints import Fingerprint


@pytest.fixture(scope="module")
def photographs():
    """Two photographs, cut in eight."""
    cuts = []
    for pixels in load_sample_images().images:
        whole = Image.fromarray(pixels)
        cuts += [whole.crop((x, y, x + 160, y + 200)) for y in (0, 210) for x in (0, 160, 320, 480)]
    return cuts


def jpeg(image, quality=50):
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file)


def found(*images):
    return find_duplicates([fingerprint(image) for image in images])


CHANGES = {
    "jpeg": jpeg,
    "half": lambda image: image.resize((80, 100), Image.Resampling.BICUBIC),
    "crop": lambda image: image.crop((2, 2, 158, 198)),
    "darker": lambda image: image.point(lambda level: int(level * 0.9)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_photographs_are_found(photographs, change):
    """Each is near to its changed self and to no other."""
    images = photographs + [CHANGES[change](image) for image in photographs]
    duplicates = found(*images)
    assert duplicates.exact == []
    assert duplicates.groups == list(range(16)) * 2
    assert duplicates.near == [(index, index + 16) for index in range(16)]


def test_the_same_pixels_are_exact(photographs):
    """Whatever lossless file they come from: other modes, a palette, an alpha channel that hides nothing."""
    image = photographs[0].convert("L")
    palette = image.convert("P")
    assert palette.convert("L").tobytes() == image.tobytes()
    duplicates = found(image, image.convert("RGB"), photographs[1], palette, image.convert("RGBA"))
    assert duplicates.exact == [(0, 1), (0, 3), (0, 4)]
    assert (duplicates.groups, duplicates.near) == ([0, 0, 1, 0, 0], [])
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert found(image, turned).exact == []


def test_flat_images_are_compared_exactly():
    """Grounds with little on them have much the same hash; images of one size and pixels are copies all the same."""
    noise = np.random.default_rng(0)
    flat = [Image.fromarray(noise.integers(200, 203, (64, 64, 3), np.uint8)) for _ in range(6)]
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black", "red", "white")]
    white_on_nothing = [Image.new("RGBA", (64, 64), (255, 255, 255, alpha)) for alpha in (0, 128)]
    duplicates = found(*flat, *plain, *white_on_nothing)
    assert (duplicates.exact, duplicates.near) == ([(6, 9)], [])
    assert duplicates.groups == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 9, 10]


def test_gradients_are_compared_exactly():
    """Evenly shaded images, such as skies, correlate whatever their colours."""
    ramp = np.linspace(0, 1, 64)[:, None, None] * np.ones((64, 64, 3))
    shaded = [
        Image.fromarray((low + (high - low) * ramp).astype(np.uint8)) for low, high in ((0, 90), (40, 200), (9, 255))
    ]
    assert found(*shaded, shaded[1]).groups == [0, 1, 2, 1]


def test_colour_and_shape_tell_images_apart(photographs):
    """Hashes know neither: one of grey levels alone does not, nor one that is pulled to twice its width."""
    image = photographs[0]
    red, green, blue = image.split()
    swapped = Image.merge("RGB", (blue, green, red))
    wide = image.resize((320, 200))
    assert len(set(found(image, swapped).groups)) == 2
    assert (fingerprint(image).phash ^ fingerprint(wide).phash).bit_count() <= 4
    assert len(set(found(image, wide).groups)) == 2


def drawn(count, seed, spread):
    """Fingerprints of made-up images, many of which are near."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(0, 12, count)
    centres, hashes = generator.normal(size=(12, 768)), generator.integers(0, 2**63, 12)
    prints = []
    for kind in kinds:
        thumbnail = centres[kind] + spread * generator.normal(size=768)
        flips = sum(1 << int(bit) for bit in generator.choice(63, generator.integers(0, 6), replace=False))
        thumbnail = (thumbnail / np.linalg.norm(thumbnail)).astype(np.float32)
        height = int(generator.integers(90, 104))
        contrast = float(generator.choice([1.0, 50.0], p=[0.1, 0.9]))
        digest = bytes([kind]) + generator.bytes(1)[:1].translate(bytes(value % 8 for value in range(256)))
        prints.append(Fingerprint(100, height, False, False, digest, int(hashes[kind]) ^ flips, contrast, thumbnail))
    return prints


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_connected_components(seed):
    """Against a comparison of every image with every other, and scipy's components of the graph."""
    prints = drawn(150, seed, 0.12)
    first = {}
    for index, print_ in enumerate(prints):
        first.setdefault(print_.digest, index)
    edges = [(first[print_.digest], index) for index, print_ in enumerate(prints) if first[print_.digest] != index]
    kinds = [
        index
        for index in sorted(first.values())
        if prints[index].contrast >= 4 and prints[index].phash.bit_count() >= 12
    ]
    near = {
        (a, b)
        for a in kinds
        for b in kinds
        if a < b
        and bin(prints[a].phash ^ prints[b].phash).count("1") <= 6
        and float(prints[a].thumbnail @ prints[b].thumbnail) >= 0.985
        and max(prints[a].height, prints[b].height) / min(prints[a].height, prints[b].height) <= 1.1
    }
    rows, columns = np.array([*edges, *near]).T
    number, component = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(150, 150)))
    duplicates = find_duplicates(prints)
    assert duplicates.exact == sorted(edges)
    group, forest = list(range(150)), []
    for a, b in sorted(near):
        if group[a] != group[b]:
            forest.append((a, b))
            group = [group[a] if number == group[b] else number for number in group]
    assert duplicates.near == forest  # the pairs of comparing one image after the other
    assert len(near) > len(duplicates.near) > 10
    pairs = set(zip(duplicates.groups, component.tolist(), strict=True))
    assert len(pairs) == number == len(set(duplicates.groups))


def test_four_thousand_are_compared_in_no_time():
    """The limit is 2 s for what takes a fraction of one, whether all differ, all are one, or all differ and have one
    hash, as photographs of one layout may."""
    generator = np.random.default_rng(0)
    thumbnails = generator.normal(size=(4000, 768)).astype(np.float32)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    hashes = generator.integers(0, 2**63, 4000).tolist()
    apart = [
        Fingerprint(9, 9, False, False, index.to_bytes(2, "big"), hashes[index], 50.0, thumbnails[index])
        for index in range(4000)
    ]
    alike = [replace(print_, phash=0xFFFFFF, thumbnail=thumbnails[0]) for print_ in apart]
    one_hash = [replace(print_, phash=0xFFFFFF) for print_ in apart]
    begun = time.process_time()
    assert find_duplicates(apart).groups == find_duplicates(one_hash).groups == list(range(4000))
    assert set(find_duplicates(alike).groups) == {0}
    assert time.process_time() - begun < 2


def test_a_part_of_the_images(photographs):
    """In another order the same groups, numbered anew; pairs of what is left."""
    images = [photographs[0], photographs[1], photographs[0], jpeg(photographs[1]), photographs[2]]
    part = found(*images).subset([4, 3, 2, 1])
    assert (part.groups, part.exact, part.near) == ([0, 1, 2, 1], [], [(1, 3)])
    assert part.fingerprints[0].digest == fingerprint(photographs[2]).digest
    again = found(*images).subset([2, 0])
    assert (again.groups, again.exact) == ([0, 0], [(0, 1)])


def test_nothing_is_no_duplicate():
    """Of no images there are none."""
    assert find_duplicates([]).groups == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_look_decodes_each_file_once(tmp_path, photographs, workers):
    """Broken files are left out as `survey` leaves them out; fingerprints are those of the images that stay."""
    for number, image in enumerate(photographs[:8]):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number}.png")
    (tmp_path / "a" / "5.png").write_bytes(b"hello")
    data, prints = fingerprint_all(open_data(str(tmp_path), 0), 0.2, workers)
    assert [entry.file for entry in data.left_out] == ["a/5.png"]
    assert len(prints) == 8
    images = [split.image(index) for split in data.train_and_val for index in range(len(split))]
    assert [print_.digest for print_ in prints] == [fingerprint(image).digest for image in images]
    with pytest.raises(ValueError, match="1 of 9 files cannot be used"):
        fingerprint_all(open_data(str(tmp_path), 0), 0.1)


def test_what_is_said_of_a_image():
    """Size, colour and transparency, in whatever mode."""
    grey, red = Image.new("L", (9, 7), 9), Image.new("RGB", (9, 7), "red")
    clear = Image.new("LA", (9, 7), (9, 0))
    deep = Image.fromarray(np.full((7, 9), 40_000, np.uint16))
    looked = [fingerprint(image) for image in (grey, red, clear, deep, red.convert("RGBA"))]
    assert {(print_.width, print_.height) for print_ in looked} == {(9, 7)}
    assert [print_.grey for print_ in looked] == [True, False, True, True, False]
    assert [print_.transparent for print_ in looked] == [False, False, True, False, False]


def test_digits_and_their_like_are_not_lumped_together():
    """Small images of the same things are rarely taken for each other: of 228,000 pairs of digits no three."""
    data = open_data("digits")
    prints = [fingerprint(data.train.image(index)) for index in range(0, len(data.train), 2)]
    assert len(find_duplicates(prints).near) < 3
