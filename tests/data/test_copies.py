"""pytest tests/data/test_copies.py: `open_data` keeps copies of an image on one side of a folder's split."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vismoe.data import Data, ImageSet, check_images, find_duplicates, fingerprint, open_data
from vismoe.data.images import read_image
from vismoe.data.splits import fingerprints
from vismoe.data.splits.folder_split import draw_of_each_class
from vismoe.data.splits.grouped_split import grouped_split


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).resize((96, 96))


def lay(root, **classes):
    """Class folders: of each class a list of numbers, one an image; the same number is the same image."""
    for name, numbers in classes.items():
        (root / name).mkdir(parents=True)
        for place, number in enumerate(numbers):
            noise(number).save(root / name / f"{place:02}.png")


def sides(data):
    return {file: part for part, images in (("train", data.train), ("val", data.val)) for file in images.files}


@pytest.mark.parametrize(("workers", "seed"), [(0, 0), (0, 1), (2, 2)])
def test_copies_are_on_one_side(tmp_path, seed, workers):
    """Exact copies, JPEG copies and halves of an image are never both trained and evaluated on; each class still has
    about a quarter of its images to evaluate on."""
    lay(tmp_path, a=[n // 2 for n in range(16)], b=range(100, 116), c=[200] * 3 + [201] * 2 + [*range(202, 213)])
    for number in range(4):
        noise(100 + number).save(tmp_path / "b" / f"{number:02} again.jpg", quality=85)
        noise(100 + number).resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / "b" / f"{number:02} small.png")
    data = open_data(str(tmp_path), seed, workers)
    files = [*data.train.files, *data.val.files]
    groups = find_duplicates([fingerprint(read_image(tmp_path / file)) for file in files]).groups
    assert len(set(groups)) == 8 + 16 + 13
    border = len(data.train)
    assert not set(groups[:border]) & set(groups[border:])
    for label, size in enumerate((16, 24, 16)):
        assert abs((data.val.labels == label).sum() - size / 4) <= 1.5
    assert data.moved


@pytest.mark.parametrize("seed", range(4))
def test_a_folder_without_copies_is_split_as_it_always_was(tmp_path, seed):
    """A quarter of each class, drawn as before there were groups: nothing moves."""
    lay(tmp_path, a=range(9), b=range(20, 26), c=[40])
    data = open_data(str(tmp_path), seed)
    names = [(file.split("/")[0],) for file in open_data(str(tmp_path)).val.files]
    drawn = draw_of_each_class(names, seed, 0.25)
    assert data.val.files == [open_data(str(tmp_path)).val.files[index] for index in sorted(drawn)]
    assert (data.moved, data.unreadable) == ((), ())
    assert sides(open_data(str(tmp_path), seed, moved=())) == sides(data)


def test_the_split_of_old_runs(tmp_path):
    """Written down from 1558405, whose runs go on with these files: with `moved=()` they are had again, copies or not,
    and none is decoded."""
    for name, count in (("a", 9), ("b", 4), ("c", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").touch()
    data = open_data(str(tmp_path), 7, moved=())
    assert data.val.files == ["a/4.png", "a/6.png", "b/3.png"]
    assert data.unreadable is None


def test_only_what_copies_tie_changes_sides(tmp_path):
    """Of classes without copies nothing moves, and of one with them as little as its share allows."""
    lay(tmp_path, a=range(20), b=[50, 50, *range(51, 69)])
    before = sides(open_data(str(tmp_path), 3, moved=()))
    after = open_data(str(tmp_path), 3)
    changed = {file for file, part in sides(after).items() if part != before[file]}
    assert changed == set(after.moved)
    assert len(changed) <= 2
    assert all(file.startswith("b/") for file in changed)


def test_moved_gives_the_split_again_without_a_look(tmp_path, monkeypatch):
    """What `Data.moved` says is enough: the split is the same with nothing decoded, also where images are gone bad."""
    lay(tmp_path, a=[0, 0, 0, 1, 2, 3, 4, 5], b=[10, 10, 11, 12, 13, 13, 14, 15])
    data = open_data(str(tmp_path), 1)
    monkeypatch.setattr(fingerprints, "fingerprint", None)
    again = open_data(str(tmp_path), 1, moved=data.moved)
    assert sides(again) == sides(data)
    assert again.moved == data.moved
    assert [split.labels.tolist() for split in again.train_and_val] == [
        split.labels.tolist() for split in data.train_and_val
    ]


def test_each_image_is_decoded_once(tmp_path, monkeypatch):
    """To split and to check is one look: `check_images` goes by what opening the folder found."""
    lay(tmp_path, a=[0, 0, 1, 2], b=[3, 4, 5, 6])
    (tmp_path / "b" / "broken.png").write_text("hello")
    decoded = Counter()
    monkeypatch.setattr(
        "vismoe.data.folders.image_folder.read_image", lambda path: decoded.update([path.name]) or read_image(path)
    )
    data = check_images(check_images(open_data(str(tmp_path), 0), 0.2), 0.2)
    assert [entry.file for entry in data.left_out] == ["b/broken.png"]
    assert sum(decoded.values()) == 9
    with pytest.raises(ValueError, match="1 of 9 files cannot be used"):
        check_images(open_data(str(tmp_path), 0), 0.1)


def test_a_broken_file_is_in_the_part_that_it_was_drawn_for(tmp_path):
    """It has no copies, and moves nothing."""
    lay(tmp_path, a=range(8), b=range(20, 28))
    before = sides(open_data(str(tmp_path), 0))
    for name in ("a/03.png", "b/00.png", "b/07.png"):
        (tmp_path / name).write_text("hello")
    data = open_data(str(tmp_path), 0)
    assert sides(data) == before
    assert [entry.file for entry in data.unreadable] == ["a/03.png", "b/00.png", "b/07.png"]


def test_nothing_but_copies_is_an_error(tmp_path):
    """What cannot be split without a leak is not split."""
    lay(tmp_path, a=[0, 0, 0], b=[1, 1])
    with pytest.raises(ValueError, match=r"no class has two images that are not copies of each other"):
        open_data(str(tmp_path), 0)


def test_a_zip_is_split_as_its_folder(tmp_path, monkeypatch):
    """Copies in it as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lay(tmp_path / "set", a=[0, 0, 1, 2, 3, 3], b=[10, 11, 12, 13])
    packed = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    one, other = (open_data(name, 2) for name in (str(tmp_path / "set"), packed))
    assert sides(one) == sides(other)
    assert one.moved == other.moved


drawings = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11)), min_size=3, max_size=30)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawings, st.integers(0, 2**32 - 1))
def test_what_was_drawn_is_kept_where_no_group_is_torn(images, seed):
    """Against its definition: of any draw, whole groups stay held out, no group is torn, no class loses its last image
    to train on, and a class of two groups that the draw held out something of is still held out."""
    labels = torch.tensor([label for label, _ in images])
    groups = [12 * label + group for label, group in images]
    try:
        drawn = draw_of_each_class([(str(label),) for label, _ in images], seed, 0.25)
        train, val = grouped_split(labels, groups, seed, 0.25, drawn)
    except ValueError:
        assert all(number < 2 for number in Counter(group // 12 for group in set(groups)).values())
        return
    torn = {groups[i] for i in drawn} & {groups[i] for i in range(len(groups)) if i not in drawn}
    assert not {groups[i] for i in train} & {groups[i] for i in val}
    assert {i for i in drawn if groups[i] not in torn} <= set(val)
    if not torn:
        assert set(val) == drawn
    assert {label for label, _ in images} == {images[i][0] for i in train}
    spread = Counter(group // 12 for group in set(groups))
    assert {images[i][0] for i in val} == {label for label, number in spread.items() if number > 1}


@pytest.mark.parametrize("labels", [torch.tensor([0, 2, 2]), torch.eye(4, dtype=torch.bool)[[0, 2, 2]]])
def test_classes_without_an_image_are_named(labels):
    """Of one label an image and of several: the check, the split and `finetune` refuse these."""
    images = ImageSet(labels, lambda index: noise(index))
    assert Data("set", ["a", "b", "c", "d"], None, images).classes_without(images) == ["b", "d"]
