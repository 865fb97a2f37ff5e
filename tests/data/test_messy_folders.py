"""pytest tests/data/test_messy_folders.py: folders as people have them: links, odd names, odd sizes, broken files."""

import csv
import os
import pickle
import struct
import zlib

import pytest
import torch
from PIL import Image

from vismoe.data import (
    check_images,
    evaluation_transform,
    list_images,
    open_data,
    read_image,
    training_transform,
    without_files,
)
from vismoe.data.batches import Samples

ODD_NAMES = ["two words", 'it\'s "so"', "new\nline", "a, b; c|d", "猫", "🐈", "%20", "-n", "back\\slash"]
CONFIG = {"input_size": (3, 32, 32), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic", "crop_pct": 0.9}


def paint(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def lay(root, **classes):
    """Class folders of so many images, no two of one shade: copies would be kept on one side of a split."""
    shades = iter(range(256))
    for name, count in classes.items():
        for number in range(count):
            paint(root / name / f"{number}.png", next(shades))


def text_file(path):
    path.write_text("hello")


def empty_file(path):
    path.write_bytes(b"")


def truncated_jpeg(path):
    Image.effect_noise((64, 64), 50).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:-500])


def bomb(path):
    """A few bytes whose header claims 20,000 × 20,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


BROKEN = {
    "text.png": (text_file, "not an image of a known format"),
    "empty.png": (empty_file, "not an image of a known format"),
    "cut.jpg": (truncated_jpeg, "truncated"),
    "bomb.png": (bomb, "pixels"),
}


def named(data):
    return [(entry.file, entry.reason) for entry in data.left_out]


def test_a_link_to_a_file_inside_is_followed(tmp_path):
    """A link is the image that it leads to, with the class of the place where the link lies; so is a link to one."""
    paint(tmp_path / "a" / "1.png", 10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link.png").symlink_to("../a/1.png")
    (tmp_path / "b" / "twice.png").symlink_to(tmp_path / "b" / "link.png")
    opened = open_data(str(tmp_path))
    assert (opened.val.files, opened.left_out) == (["a/1.png", "b/link.png", "b/twice.png"], ())
    assert opened.val.labels.tolist() == [0, 1, 1]
    assert [opened.val.image(number).getpixel((0, 0)) for number in range(3)] == [10, 10, 10]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("RELATIVE/outside.png", "a link to a path outside the folder: not followed"),
        ("ABSOLUTE/outside.png", "a link to a path outside the folder: not followed"),
        ("ABSOLUTE/hop.png", "a link to a path outside the folder: not followed"),
        ("gone.png", "a link whose target does not exist"),
        ("..", "a link to a folder that contains it: not followed"),
        (".", "a link to a folder that contains it: not followed"),
        ("RELATIVE/elsewhere", "a link to a path outside the folder: not followed"),
    ],
)
@pytest.mark.parametrize("part", ["", "train/"])
def test_other_links_are_not_followed(tmp_path, part, target, reason):
    """Out of the folder, nowhere, up to where it lies: left out and named, and nothing else is lost."""
    root = tmp_path / "set"
    lay(root / part, a=2, b=1)
    paint(tmp_path / "outside.png")
    paint(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "hop.png").symlink_to("outside.png")
    link = root / part / "a" / "link.png"
    target = target.replace("ABSOLUTE", str(tmp_path)).replace("RELATIVE", os.path.relpath(tmp_path, link.parent))
    link.symlink_to(target)
    opened = open_data(str(root))
    assert opened.val.files == [f"{part}{file}" for file in ("a/0.png", "a/1.png", "b/0.png")]
    assert named(opened) == [(f"{part}a/link.png", reason)]


@pytest.mark.parametrize("target", ["ABSOLUTE/elsewhere", "gone", "."])
@pytest.mark.parametrize("part", ["", "train/"])
def test_a_class_that_would_be_lost_with_its_link_is_an_error(tmp_path, part, target):
    """A class folder that is a link out of the folder, nowhere, or around itself: its images would be missing from
    figures that look whole, so nothing is trained; the link and what to do are named."""
    lay(tmp_path / "set" / part, a=1, b=1)
    lay(tmp_path, elsewhere=2)
    (tmp_path / "set" / part / "c").symlink_to(target.replace("ABSOLUTE", str(tmp_path)))
    with pytest.raises(ValueError, match=r"set/(train/)?c is a link .*its class would be lost: replace the link by"):
        open_data(str(tmp_path / "set"))


def test_a_linked_class_folder_inside_is_followed(tmp_path):
    """A class folder may be a link to a folder inside the set, here a hidden one; chains of links end, and a link from
    one class to another and back is read once each way."""
    lay(tmp_path, a=1, b=2)
    lay(tmp_path / ".store", owls=3)
    (tmp_path / "owl").symlink_to(".store/owls")
    (tmp_path / "a" / "to b").symlink_to("../b")
    (tmp_path / "b" / "to a").symlink_to("../a")
    opened = open_data(str(tmp_path))
    assert opened.classes == ["a", "b", "owl"]
    assert opened.val.files == [
        *("a/0.png", "a/to b/0.png", "a/to b/1.png", "b/0.png", "b/1.png", "b/to a/0.png"),
        *("owl/0.png", "owl/1.png", "owl/2.png"),
    ]
    assert {entry.file for entry in opened.left_out} == {"a/to b/to a", "b/to a/to b"}
    assert opened.val.image(8).getpixel((0, 0)) == 2


def test_a_set_may_be_a_link_itself(tmp_path):
    """The folder that was asked for is opened, wherever it lies."""
    lay(tmp_path / "set", a=2)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert open_data(str(tmp_path / "link")).val.files == ["a/0.png", "a/1.png"]


def test_odd_names_of_classes_and_files_are_kept(tmp_path):
    """Whatever a file system takes as a name (in UTF-8) is one, letter for letter."""
    for shade, name in enumerate(ODD_NAMES):
        paint(tmp_path / name / f"{name}.png", shade)
    opened = check_images(open_data(str(tmp_path)), 0.0)
    assert (opened.classes, opened.left_out) == (sorted(ODD_NAMES), ())
    for number, name in enumerate(sorted(ODD_NAMES)):
        assert opened.val.files[number] == f"{name}/{name}.png"
        assert opened.val.labels[number] == number
        assert opened.val.image(number).getpixel((0, 0)) == ODD_NAMES.index(name)


def test_odd_names_in_metadata_are_kept(tmp_path):
    """A table quotes what it must: file names and other columns come back letter for letter."""
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "label", "note"])
        for name in ODD_NAMES:
            paint(tmp_path / f"{name}.png")
            table.writerow([f"{name}.png", "a", name])
    opened = open_data(str(tmp_path))
    assert opened.val.columns["note"] == [file.removesuffix(".png") for file in opened.val.files]
    assert (sorted(opened.val.columns["note"]), opened.left_out) == (sorted(ODD_NAMES), ())


def test_a_class_name_that_is_no_text_is_an_error(tmp_path):
    """A name in an old encoding cannot be written into a model folder: said at once, with the name's bytes."""
    paint(tmp_path / os.fsdecode(b"gr\xfcn") / "1.png")
    with pytest.raises(ValueError, match=r"class folder 'gr\\udcfcn' is not UTF-8: rename it"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (7, 3_000)])
@pytest.mark.parametrize(
    "transform",
    [
        evaluation_transform(CONFIG),
        training_transform(CONFIG),
        training_transform(CONFIG, crop=0.05, flip=0.5),
    ],
    ids=["evaluation", "training", "crops"],
)
def test_odd_sizes_pass_through_the_transforms(monkeypatch, transform, size):
    """A dot and a hairline fill the network's input with their colour; unshortened, the hairline would be scaled up to
    32 × 960,000. Nothing larger is made on the way than 20 times the (slightly larger than the crop) square."""
    made, resize = [], Image.Image.resize

    def watched(image, to, *args, **options):
        made.append(to)
        return resize(image, to, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    found = transform({"image": Image.new("L", size, 51)})["image"]
    assert found.shape == (3, 32, 32)
    assert (found - 51 / 255).abs().max() < 1e-6
    assert max(width * height for width, height in made) <= 20 * (32 / 0.9 + 1) ** 2


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_very_long_image_the_middle_is_seen(turned):
    """The network is shown the centre of what is shortened, as of any image: white ends, grey middle."""
    image = Image.new("L", (30_000, 10), 255)
    image.paste(51, (14_900, 0, 15_100, 10))
    image = image.transpose(Image.Transpose.ROTATE_90) if turned else image
    assert (evaluation_transform(CONFIG)({"image": image})["image"] - 51 / 255).abs().max() < 1e-6


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_a_reason(tmp_path, name, seed):
    """What cannot be decoded is left out of whichever part it is in, and the rest stays, in order."""
    make, reason = BROKEN[name]
    lay(tmp_path, a=4, b=4)
    make(tmp_path / "a" / name)
    opened = open_data(str(tmp_path), seed)
    found = check_images(opened, 0.2)
    (entry,) = found.left_out
    assert entry.file == f"a/{name}"
    assert reason in entry.reason
    assert str(tmp_path) not in entry.reason
    for before, after in zip(opened.train_and_val, found.train_and_val, strict=True):
        assert after.files == [file for file in before.files if file != f"a/{name}"]
        assert after.labels.tolist() == [0 if file.startswith("a/") else 1 for file in after.files]
        assert all(after.image(number).size == (8, 8) for number in range(len(after)))


def test_workers_find_the_same(tmp_path):
    """A check_images by two processes is that of none: the same files, reasons and order."""
    lay(tmp_path, a=40, b=40)
    for name, (make, _) in BROKEN.items():
        make(tmp_path / "a" / name)
        make(tmp_path / "b" / f"z {name}")
    opened = open_data(str(tmp_path), 0)
    alone, together = (check_images(opened, 0.1, workers) for workers in (0, 2))
    assert len(alone.left_out) == 8
    assert alone.left_out == together.left_out
    assert [split.files for split in alone.train_and_val] == [split.files for split in together.train_and_val]


def test_files_that_were_left_out_before_stay_named(tmp_path):
    """The check_images adds to what opening found, by the names of files."""
    lay(tmp_path, b=3)
    paint(tmp_path / "loose.png")
    (tmp_path / "b" / "a link.png").symlink_to("gone.png")
    text_file(tmp_path / "b" / "text.png")
    found = check_images(open_data(str(tmp_path)), 0.5)
    assert [entry.file for entry in found.left_out] == ["b/a link.png", "b/text.png", "loose.png"]


@pytest.mark.parametrize("good", [19, 9])
def test_a_small_share_may_be_broken(tmp_path, good):
    """5 %, and exactly 10 %, are within a limit of 0.1."""
    lay(tmp_path, a=good)
    text_file(tmp_path / "a" / "bad.png")
    found = check_images(open_data(str(tmp_path)), 0.1)
    assert (len(found.val), len(found.left_out)) == (good, 1)


def test_a_large_share_is_an_error(tmp_path):
    """60 % broken is a wrong folder or a bad copy: counts, limit, and examples are said."""
    lay(tmp_path, a=4)
    for number in range(5):
        text_file(tmp_path / "a" / f"bad{number}.png")
    (tmp_path / "a" / "link.png").symlink_to("gone.png")
    with pytest.raises(
        ValueError, match=r"6 of 10 files cannot be used, .* max_unreadable=0\.1 \('a/bad0\.png': not an image"
    ):
        check_images(open_data(str(tmp_path)), 0.1)


def test_a_class_without_a_readable_image_to_train_on_is_an_error(tmp_path):
    """A network would have outputs that nothing trained: their classes are named."""
    lay(tmp_path / "train", a=3)
    lay(tmp_path / "val", a=1, b=1)
    for name in "bc":
        (tmp_path / "train" / name).mkdir()
        text_file(tmp_path / "train" / name / "1.png")
    with pytest.raises(ValueError, match=r"no readable training images of b, c$"):
        check_images(open_data(str(tmp_path)), 0.9)


def test_a_label_without_a_readable_image_to_train_on_is_an_error(tmp_path):
    """So it is where an image may show several."""
    for number in range(3):
        paint(tmp_path / "train" / f"{number}.png")
        paint(tmp_path / "val" / f"{number}.png")
    text_file(tmp_path / "train" / "1.png")
    lines = [f"{part}/{number}.png,{'aba'[number]}|c\n" for part in ("train", "val") for number in range(3)]
    (tmp_path / "metadata.csv").write_text("file_name,labels\n" + "".join(lines))
    with pytest.raises(ValueError, match=r"no readable training images of b$"):
        check_images(open_data(str(tmp_path)), 0.9)


@pytest.mark.parametrize(("part", "purpose"), [("train", "train"), ("val", "evaluate")])
def test_a_part_without_a_readable_image_is_an_error(tmp_path, part, purpose):
    """Nothing to train, or to evaluate, on is said before a run begins."""
    lay(tmp_path / "train", a=1)
    lay(tmp_path / "val", a=1)
    opened = open_data(str(tmp_path))
    text_file(tmp_path / part / "a" / "0.png")
    with pytest.raises(ValueError, match=f"no readable image is left to {purpose} on"):
        check_images(opened, 0.9)


def test_a_class_may_be_lost_to_evaluation(tmp_path):
    """Where nothing is trained, a class without a readable image keeps its number and has none."""
    lay(tmp_path, a=2, b=2, c=2)
    opened = open_data(str(tmp_path))
    for number in range(2):
        text_file(tmp_path / "b" / f"{number}.png")
    found = check_images(opened, 0.5)
    assert (found.classes, found.val.labels.tolist()) == (["a", "b", "c"], [0, 0, 2, 2])
    assert without_files(opened, found.left_out).val.files == found.val.files


def test_loose_images_beside_class_folders_are_named(tmp_path):
    """An image in no class folder is no part of the set, and not passed over in silence."""
    lay(tmp_path, a=1, b=1)
    paint(tmp_path / "loose.png")
    opened = open_data(str(tmp_path))
    assert opened.val.files == ["a/0.png", "b/0.png"]
    assert named(opened) == [("loose.png", "not in a class folder")]


@pytest.mark.parametrize(
    ("folders", "used"),
    [
        (("validation",), "validation"),
        (("valid",), "valid"),
        (("test",), "test"),
        (("test", "val"), "val"),
        (("test", "valid", "validation"), "validation"),
    ],
)
def test_held_out_parts_have_other_names(tmp_path, folders, used):
    """validation, valid and test are as good as val; of several the first of val, validation, valid, test is used."""
    lay(tmp_path / "train", a=2, b=1)
    for name in folders:
        lay(tmp_path / name, b=1)
    opened = open_data(str(tmp_path), 0)
    assert opened.train.files == ["train/a/0.png", "train/a/1.png", "train/b/0.png"]
    assert (opened.val.files, opened.val.labels.tolist()) == ([f"{used}/b/0.png"], [1])


def test_train_alone_is_split(tmp_path):
    """A quarter of train/ is held out with a seed; without one all of it is for evaluation."""
    lay(tmp_path / "train", a=8, b=4)
    opened = open_data(str(tmp_path), 0)
    assert (opened.train.labels.bincount().tolist(), opened.val.labels.bincount().tolist()) == ([6, 3], [2, 1])
    assert all(file.startswith("train/") for split in opened.train_and_val for file in split.files)
    whole = open_data(str(tmp_path))
    assert (whole.train, len(whole.val)) == (None, 12)


def test_a_held_out_part_alone_is_never_trained_on(tmp_path):
    """val/ by itself is for evaluation, whatever the seed."""
    lay(tmp_path / "val", a=8)
    opened = open_data(str(tmp_path), 0)
    assert (opened.train, len(opened.val)) == (None, 8)


def test_classes_are_numbered_as_a_network_has_them(tmp_path):
    """By name, in both parts: the set may lack classes that the network knows."""
    lay(tmp_path, ant=4, bee=4)
    opened = open_data(str(tmp_path), 0)
    found = opened.align_classes(["cat", "bee", "dog", "ant"])
    assert found.classes == ["cat", "bee", "dog", "ant"]
    for split in found.train_and_val:
        assert split.labels.tolist() == [3 if file.startswith("ant/") else 1 for file in split.files]
    assert (opened.classes, set(opened.val.labels.tolist())) == (["ant", "bee"], {0, 1})


def test_multi_label_columns_are_numbered_as_a_network_has_them(tmp_path):
    """A column of each of the network's classes, in its order, empty where the set has none."""
    for number in range(3):
        paint(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("file_name,labels\n0.png,ant|bee\n1.png,bee\n2.png,\n")
    found = open_data(str(tmp_path)).align_classes(["cat", "bee", "ant"])
    assert found.val.labels.dtype == torch.bool
    assert found.val.labels.tolist() == [[False, True, True], [False, True, False], [False, False, False]]


def test_a_class_that_a_network_does_not_know_is_an_error(tmp_path):
    """It cannot be recognised: the unknown classes are named, and some of the known."""
    lay(tmp_path, ant=1, wasp=1, yak=1)
    with pytest.raises(ValueError, match=r"the model does not know: wasp, yak \(it knows ant, bee, cat, dog, eel, …\)"):
        open_data(str(tmp_path)).align_classes(["ant", "bee", "cat", "dog", "eel", "fox"])


def test_links_to_themselves_and_pipes(tmp_path):
    """Named, neither followed nor waited for."""
    paint(tmp_path / "c" / "x.png")
    (tmp_path / "c" / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "c" / "pipe.png")
    _, left_out = list_images(tmp_path)
    assert {entry.file: entry.reason for entry in left_out} == {
        "c/loop.png": "a link whose target does not exist",
        "c/pipe.png": "not a regular file",
    }


def test_odd_tags_do_not_spoil_a_image(tmp_path):
    """A turned image whose other tags are of types they should not have is read upright."""
    tags = struct.pack("<H", 2) + struct.pack("<HHI", 0x100, 2, 4) + b"abc\0" + struct.pack("<HHI", 0x112, 3, 1)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tags + b"\x06\0\0\0" + b"\0\0\0\0"
    Image.new("L", (4, 2)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (2, 4)


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_sets_and_transforms_can_be_sent_to_processes(name, tmp_path):
    """Where processes are not forked, workers are sent what they need: it can be pickled."""
    lay(tmp_path, a=2, b=2)
    data = open_data("digits" if name == "digits" else str(tmp_path), 0)
    config = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic", "crop_pct": 1.0}
    for transform in (evaluation_transform(config), training_transform(config, degrees=5.0, flip=0.5)):
        sent = pickle.loads(pickle.dumps(Samples(data.train, transform)))
        assert torch.equal(sent[0, 1]["image"], Samples(data.train, transform)[0, 1]["image"])
