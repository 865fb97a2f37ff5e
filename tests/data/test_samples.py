"""pytest tests/data/test_samples.py: images, boxes and masks of a sample move together, and nothing else does."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vismoe.data import ImageSet, cached_images, evaluation_batches, evaluation_transform, training_batches
from vismoe.data import training_transform as training

EVERYTHING = {
    "degrees": 30.0,
    "translate": 0.2,
    "scale": 0.3,
    "shear": 10.0,
    "flip": 0.5,
    "crop": 0.3,
    "color_jitter": 0.4,
    "noise": 0.05,
    "erase": 0.5,
}
GEOMETRY = {name: EVERYTHING[name] for name in ("degrees", "translate", "scale", "shear", "flip", "crop")}
FORMS = {"flip": {"flip": 0.5}, "crop": {"crop": 0.2}, "affine": dict(itertools.islice(GEOMETRY.items(), 4))}
FORMS |= {"centre": {}, "everything": GEOMETRY}


def config(channels=3, size=(48, 48), crop_pct=0.9, **more):
    grey = (0.5,) * channels
    return {
        "input_size": (channels, *size),
        "mean": grey,
        "std": grey,
        "interpolation": "bilinear",
        "crop_pct": crop_pct,
    } | more


def boxes(*corners, size=(60, 90)):
    return tv_tensors.BoundingBoxes(torch.tensor(corners, dtype=torch.float32), format="XYXY", canvas_size=size)


def scene(generator, size=(60, 90)):
    """A black rectangle on white as an image, a box and a mask."""
    height, width = size
    left, top = (int(generator.integers(4, length - 30)) for length in (width, height))
    right, bottom = left + int(generator.integers(8, 24)), top + int(generator.integers(8, 24))
    pixels, mask = np.full((height, width, 3), 255, np.uint8), torch.zeros(1, height, width, dtype=torch.uint8)
    pixels[top:bottom, left:right] = 0
    mask[0, top:bottom, left:right] = 1
    return {
        "image": Image.fromarray(pixels),
        "boxes": boxes((left, top, right, bottom), size=size),
        "mask": tv_tensors.Mask(mask),
        "label": torch.tensor(3),
    }


def extent(dark):
    """The box (left, top, right, bottom) around the pixels that are set; None without any."""
    places = dark.nonzero()
    if not len(places):
        return None
    (top, left), (bottom, right) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    return left, top, right, bottom


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tensor", [False, True])
def test_box_and_mask_move_with_the_image(form, tensor):
    """The oracle is the drawn rectangle: wherever its pixels went, the box encloses them (to a pixel) and the mask
    covers them (but for its border). A box without area means that nothing is seen. A box that is not turned is tight.
    """
    generator, seen = np.random.default_rng(0), 0
    transform = training(config(), **FORMS[form])
    torch.manual_seed(0)
    for _ in range(30):
        sample = scene(generator)
        if tensor:
            sample["image"] = tv_tensors.Image(torch.from_numpy(np.array(sample["image"])).permute(2, 0, 1))
        moved = transform(sample)
        dark = (moved["image"] / 2 + 0.5).mean(0) < 0.5
        left, top, right, bottom = moved["boxes"][0].tolist()
        assert moved["boxes"].canvas_size == (48, 48)
        assert isinstance(moved["mask"], tv_tensors.Mask)
        assert moved["mask"].shape == (1, 48, 48)
        assert set(moved["mask"].unique().tolist()) <= {0, 1}
        pixels = extent(dark)
        if pixels is None:
            assert (right - left) * (bottom - top) < 40
            assert moved["mask"].sum() < 40
            continue
        if right - left == 0 or bottom - top == 0:  # of the rectangle at most a blurred border is in sight
            assert dark.sum() < 12
            continue
        seen += 1
        assert left <= pixels[0] + 1.01
        assert top <= pixels[1] + 1.01
        assert right >= pixels[2] - 1.01
        assert bottom >= pixels[3] - 1.01
        mask = moved["mask"][0].bool()
        border = 2 * (pixels[2] - pixels[0] + pixels[3] - pixels[1]) + 8
        assert (mask ^ dark).sum() <= border
        if form in ("flip", "crop", "centre"):
            assert max(abs(a - b) for a, b in zip((left, top, right, bottom), pixels, strict=True)) <= 1.01
    assert seen > 20


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(48, 48), (32, 64)])
def test_evaluation_moves_them_as_the_image(size, crop_mode):
    """timm's own transform of the image and ours of box, mask and image tensor agree on where the rectangle is."""
    generator = np.random.default_rng(1)
    transform = evaluation_transform(config(size=size, crop_mode=crop_mode))
    for shape in ((60, 90), (90, 60), (50, 50)) * 4:
        sample = scene(generator, shape)
        sample["tensor"] = tv_tensors.Image(torch.from_numpy(np.array(sample["image"])).permute(2, 0, 1))
        moved = transform(sample)
        alone = transform({"image": sample["image"]})["image"]
        assert torch.equal(moved["image"], alone)
        assert moved["mask"].shape[1:] == moved["boxes"].canvas_size == alone.shape[1:] == size
        inside = (alone / 2 + 0.5).mean(0)
        if crop_mode != "border":  # where timm fills up with the mean as eight bits have it
            torch.testing.assert_close(moved["tensor"], alone, rtol=0, atol=0.02)
        pixels = extent(inside < 0.25)
        if pixels is not None and crop_mode != "border":
            assert max(abs(a - b) for a, b in zip(moved["boxes"][0].tolist(), pixels, strict=True)) <= 1.5
            assert (moved["mask"][0].bool() ^ (inside < 0.5)).sum() <= 100


def test_two_images_move_alike():
    """A second image gets the first one's crop, turn, mirroring, colours and erased rectangle; noise is its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    image = Image.fromarray(pixels)
    alike = training(config(), **(EVERYTHING | {"noise": 0.0}))
    noisy = training(config(), **EVERYTHING)
    torch.manual_seed(1)
    mirrored = set()
    for _ in range(30):
        moved = alike({"image": image, "second": image.copy()})
        assert torch.equal(moved["image"], moved["second"])
        other = noisy({"image": image, "second": image.copy()})
        assert not torch.equal(other["image"], other["second"])
    flipped = training(config(size=(60, 90), crop_pct=1.0), flip=0.5)
    for _ in range(20):
        moved = flipped({"left": image, "right": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)})
        assert torch.equal(moved["left"], moved["right"].flip(-1))
        mirrored.add(bool((moved["left"][0, 0, 0] * 127.5 + 127.5).round() == pixels[0, 0, 0]))
    assert mirrored == {True, False}


@pytest.mark.parametrize("form", [*FORMS, "all"])
def test_an_image_draws_as_it_does_alone(form):
    """Of one seed, an image with a box and a mask is bit-equal to the image by itself."""
    transform = training(config(), **(FORMS | {"all": EVERYTHING})[form])
    for seed in range(8):
        sample = scene(np.random.default_rng(seed))
        torch.manual_seed(seed)
        together = transform(sample)["image"]
        torch.manual_seed(seed)
        assert torch.equal(transform({"image": sample["image"]})["image"], together)


@pytest.mark.parametrize("make", [evaluation_transform, lambda given: training(given, **EVERYTHING)])
def test_everything_else_is_untouched(make):
    """Labels, plain tensors, text and objects are the very same, in the same order."""
    sample = {"z": torch.rand(3, 60, 90), **scene(np.random.default_rng(0)), "name": "a", "points": [1, 2]}
    moved = make(config())(sample)
    assert list(moved) == list(sample)
    assert all(moved[name] is sample[name] for name in ("z", "label", "name", "points"))
    assert make(config())({"label": 3}) == {"label": 3}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_any_number_of_channels(channels, dtype):
    """Tensors of C channels are scaled to 0…1 and normalised, each channel by its own mean and deviation."""
    most = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1.0}[dtype]
    levels = torch.linspace(0.1, 0.9, channels)
    image = tv_tensors.Image((levels * most).view(-1, 1, 1).expand(-1, 60, 90).to(dtype))
    given = config(channels) | {"mean": tuple(levels.tolist()), "std": (0.25,) * channels}
    plain = evaluation_transform(given)({"image": image})["image"]
    assert (type(plain), plain.shape, plain.dtype) == (torch.Tensor, (channels, 48, 48), torch.float32)
    torch.testing.assert_close(plain, torch.zeros_like(plain), rtol=0, atol=0.02)
    moved = training(given, **(GEOMETRY | {"noise": 0.01, "erase": 0.5}))({"image": image})["image"]
    assert (moved.shape, moved.dtype) == ((channels, 48, 48), torch.float32)


def test_an_image_of_other_channels_is_refused():
    """By name of what was given and what the network takes."""
    image = tv_tensors.Image(torch.zeros(4, 60, 90))
    for make in (evaluation_transform, training):
        with pytest.raises(ValueError, match=r"shape \(4, 60, 90\), but the network takes 5 channels: expected \(5, "):
            make(config(5))({"image": image})
    with pytest.raises(ValueError, match=r"color_jitter=0\.2: the network takes 5 channels, accepted are 1 and 3"):
        training(config(5), color_jitter=0.2)


def test_images_of_two_sizes_cannot_be_cropped_at_random():
    """One place would mean two things; with the centre cut out each is brought to the network's size."""
    sample = {"image": Image.new("RGB", (90, 60)), "thermal": Image.new("L", (45, 30))}
    with pytest.raises(
        ValueError, match=r"different sizes \(image 60 × 90, thermal 30 × 45\) cannot be randomly cropped"
    ):
        training(config(), crop=0.5)(sample)
    assert training(config(), degrees=5.0)(sample)["thermal"].shape == (3, 48, 48)


def test_a_box_that_is_outside_keeps_no_area():
    """Cropped away, and then turned: what is left of it is no box; there are as many boxes as before."""
    transform = training(config(crop_pct=1.0), degrees=45.0)
    torch.manual_seed(0)
    for _ in range(20):
        moved = transform(
            {"image": Image.new("RGB", (300, 60)), "b": boxes((2, 5, 40, 50), (130, 5, 170, 55), size=(60, 300))}
        )
        (gone, here) = ((box[2] - box[0]) * (box[3] - box[1]) for box in moved["b"])
        assert (gone, bool(here > 100)) == (0, True)


def test_a_hairline_with_a_box_is_shortened_with_it():
    """What is cut off a very long image is cut off its box."""
    sample = {"image": Image.new("RGB", (30_000, 10)), "boxes": boxes((14_990, 2, 15_010, 8), size=(10, 30_000))}
    for make in (evaluation_transform, training):
        moved = make(config(crop_pct=1.0))(sample)
        assert moved["image"].shape == (3, 48, 48)
        assert moved["boxes"].tolist() == [[0.0, pytest.approx(9.6), 48.0, pytest.approx(38.4)]]


def further_set():
    generator = np.random.default_rng(0)
    scenes = [scene(generator) for _ in range(10)]
    names = ("boxes", "mask")
    further = {name: [each[name] for each in scenes].__getitem__ for name in names}
    return ImageSet(torch.arange(10), [each["image"] for each in scenes].__getitem__, further=further)


def test_a_set_carries_further_values():
    """A sample has them by name; so has that of a subset, also when it was sent to another process."""
    images = further_set()
    assert list(images.sample(0)) == ["image", "label", "boxes", "mask"]
    subset = pickle.loads(pickle.dumps(images.subset([7, 2]).subset([1])))
    assert len(subset) == 1
    sample, expected = subset.sample(0), images.sample(2)
    assert sample["label"] == 2
    assert torch.equal(sample["boxes"], expected["boxes"])
    assert torch.equal(sample["mask"], expected["mask"])
    unlabelled = ImageSet(torch.zeros(10, 0, dtype=torch.bool), images.image)
    assert list(unlabelled.sample(3)) == ["image"]
    with pytest.raises(ValueError, match="boxes, mask cannot be cached at another size"):
        cached_images(images, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_dictionaries(workers):
    """Of stacked values, or of what `collate` makes of the samples; the stream is the seed's with any workers."""
    images, transform = further_set(), training(config(), **GEOMETRY)

    def lists(samples):
        return {name: [sample[name] for sample in samples] for name in samples[0]}

    batch = next(iter(training_batches(images, transform, 4, 0, workers)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "image": (4, 3, 48, 48),
        "label": (4,),
        "boxes": (4, 1, 4),
        "mask": (4, 1, 48, 48),
    }
    listed = next(iter(training_batches(images, transform, 4, 0, workers, collate=lists)))
    assert torch.equal(torch.stack(listed["image"]), batch["image"])
    assert torch.equal(torch.stack(listed["boxes"]), batch["boxes"])
    *_, last = evaluation_batches(images, evaluation_transform(config()), 4, workers, collate=lists)
    assert [int(label) for label in last["label"]] == [8, 9]
    assert all(isinstance(each, tv_tensors.BoundingBoxes) for each in last["boxes"])
