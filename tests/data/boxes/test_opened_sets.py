"""pytest tests/data/boxes/test_opened_sets.py: layouts, missing images, and what follows after opening."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from vismoe.data import (
    check_images,
    find_duplicates,
    fingerprint_all,
    format_classes,
    format_summary,
    open_data,
    split_data,
    summarise,
)

from .writers import (
    coco_document,
    save_image,
    scene,
    voc_document,
    write_coco,
    write_metadata,
    write_voc,
    write_yolo,
    yolo_lines,
)

BEE = ("bee", 4, 2, 20, 30, False)


def names(images):
    return sorted(Path(file).stem for file in images.files)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_folders_of_splits_as_roboflow_writes_them(tmp_path, kind):
    """train/, valid/ and test/ hold their own annotations; data.yaml's paths begin with ../."""
    written = scene(("train", "valid", "test"))
    for split in written.splits:
        for name, (size, objects) in written.of(split).items():
            inside = "images/" if kind == "yolo" else ""
            save_image(tmp_path / split / f"{inside}{name}.png", size)
            if kind == "voc":
                (tmp_path / split / f"{name}.xml").write_text(voc_document(name, size, objects))
            if kind == "yolo":
                path = tmp_path / split / "labels" / f"{name}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text(yolo_lines(size, objects, written.classes))
        if kind == "coco":
            document = coco_document(written.of(split), written.classes)
            (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(document))
    if kind == "yolo":
        keys = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
        (tmp_path / "data.yaml").write_text(f"{keys}nc: 2\nnames: ['ant', 'bee']\n")
    data = open_data(str(tmp_path))
    assert [names(split) for split in (data.train, data.val, data.test)] == [
        [f"{letter}{number}" for letter in "abc"] for number in range(3)
    ]
    assert data.train.sample(0)["boxes"].tolist() == [[4, 2, 20, 30], [32, 0, 64, 8]]
    assert data.left_out == ()


@pytest.mark.parametrize(
    ("entries", "splits"),
    [
        ("path: /elsewhere/set\ntrain: images/train\nval: images/val\n", ["a0 b0 c0", "a1 b1 c1"]),
        ("train: [images/train, images/test]\nval: images/val\n", ["a0 a2 b0 b2 c0 c2", "a1 b1 c1"]),
        ("train: some.txt\nval: images/val\n", ["a0 c0", "a1 b1 c1"]),
        ("train: images/train\nval: images/train\n", [None, "a0 b0 c0"]),
        ("val: images/val\n", [None, "a1 b1 c1"]),
        ("train: images/train\nval: images/val\ntest: images/none\n", ["a0 b0 c0", "a1 b1 c1"]),
    ],
)
def test_splits_of_a_data_yaml(tmp_path, entries, splits):
    """A path on another machine, lists of folders, lists of paths, the same images twice, a test split that is not
    there."""
    write_yolo(tmp_path, scene())
    (tmp_path / "some.txt").write_text("./images/train/a0.png\n/elsewhere/images/train/c0.png\n")
    (tmp_path / "data.yaml").write_text(f"{entries}names: [ant, bee]\n")
    data = open_data(str(tmp_path))
    found = [None if split is None else " ".join(names(split)) for split in (data.train, data.val)]
    assert found == splits
    assert data.test is None


def test_a_list_of_classes_instead_of_a_data_yaml(tmp_path):
    """classes.txt names the classes; text files lie beside the images, as LabelImg writes them."""
    save_image(tmp_path / "a.png", (64, 32))
    save_image(tmp_path / "b.png", (64, 32))
    (tmp_path / "a.txt").write_text(yolo_lines((64, 32), [BEE], ["ant", "bee"]))
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    data = open_data(str(tmp_path))
    assert (data.classes, names(data.val)) == (["bee"], ["a", "b"])
    assert data.val.sample(0)["boxes"].tolist() == [[4, 2, 20, 30]]


def test_class_folders_with_captions_are_still_class_folders(tmp_path):
    """Other text, JSON and XML files beside images do not make a set one with boxes."""
    for name in ("cat/1", "dog/2"):
        save_image(tmp_path / f"{name}.png", (8, 8))
        (tmp_path / f"{name}.txt").write_text("a photo of an animal\n")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    (tmp_path / "settings.json").write_text("{broken")
    (tmp_path / "feed.xml").write_text("<!DOCTYPE feed><feed/>")
    (tmp_path / "environment.yaml").write_text("name: test\n")
    data = open_data(str(tmp_path))
    assert (data.classes, data.has_boxes) == (["cat", "dog"], False)


def test_missing_and_unlisted_images_are_left_out_and_listed(tmp_path):
    """An image that is named but missing, and one that no annotation names."""
    written = scene(("",))
    for name, write, reasons in (
        ("coco", write_coco, ("named in instances.json, but no such image exists", "not named in the COCO JSON")),
        ("voc", write_voc, ("its image does not exist", "has no XML file")),
        ("metadata", write_metadata, ("but no such image exists", "not named in metadata.jsonl")),
    ):
        root = tmp_path / name
        write(root, written)
        missing = next(root.rglob("a0.png"))
        save_image(missing.with_name("new.png"), (8, 8))
        missing.unlink()
        data = open_data(str(root))
        assert names(data.val) == ["b0", "c0"]
        assert len(data.left_out) == 2
        for entry, (file, reason) in zip(data.left_out, zip(("a0", "new"), reasons, strict=True), strict=True):
            assert Path(entry.file).stem == file
            assert entry.reason.endswith(reason)


def test_text_files_without_an_image_are_listed(tmp_path):
    """In YOLO an image without a text file has no boxes; a text file without an image is listed."""
    write_yolo(tmp_path, scene(("train", "val")))
    (tmp_path / "images" / "train" / "a0.png").unlink()
    (tmp_path / "labels" / "train" / "b0.txt").unlink()
    (tmp_path / "labels" / "train" / "c0.txt").write_text("0 .5 .5 .5 .5\n1 .5 .5 .5 .5")
    data = open_data(str(tmp_path))
    assert [(entry.file, entry.reason) for entry in data.left_out] == [
        ("labels/train/a0.txt", "its image does not exist")
    ]
    assert [len(data.train.sample(index)["boxes"]) for index in range(2)] == [0, 2]


def test_a_name_in_two_splits_is_two_images(tmp_path):
    """`file_name` is looked for in the folder of the file's own split alone."""
    for split, size in (("train", (64, 32)), ("val", (32, 32))):
        save_image(tmp_path / split / "1.png", size)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / f"{split}.json"
        path.write_text(json.dumps(coco_document({"1": (size, [BEE])}, ["bee"])))
    data = open_data(str(tmp_path))
    assert (data.train.files, data.val.files) == (["train/1.png"], ["val/1.png"])
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"annotations/train.json: none of the images in the list, such as '1.png'"):
        open_data(str(tmp_path))


def test_a_split_without_annotations_is_not_used_with_a_note(tmp_path):
    """As COCO's own test images."""
    write_coco(tmp_path, scene(("train", "val")))
    save_image(tmp_path / "test" / "x.png", (8, 8))
    data = open_data(str(tmp_path))
    assert (data.test, data.left_out) == (None, ())
    expected = "the test split is not in the annotations, so it is not used: 1 image such as test/x.png"
    assert expected in data.notes


def test_one_file_for_all_splits(tmp_path):
    """Its images lie in the folders of the splits; an image in another format is listed once."""
    images = {
        f"{split}/{name}": (size, objects)
        for split in ("train", "val")
        for name, (size, objects) in scene((split,)).of(split).items()
    }
    for name, (size, _) in images.items():
        save_image(tmp_path / f"{name}.png", size)
    document = coco_document(images, ["ant", "bee"])
    document["images"].append({"id": 99, "file_name": "val/x.heic"})
    (tmp_path / "val" / "x.heic").write_bytes(b"heic")
    (tmp_path / "all.json").write_text(json.dumps(document))
    data = open_data(str(tmp_path))
    assert [names(split) for split in (data.train, data.val)] == [["a0", "b0", "c0"], ["a0", "b0", "c0"]]
    assert [entry.file for entry in data.left_out] == ["val/x.heic"]
    assert "HEIC is not read" in data.left_out[0].reason


def test_other_files_of_cocos_are_not_read(tmp_path):
    """Captions and keypoints lie beside the instances."""
    write_coco(tmp_path, scene(("train", "val")))
    for name in ("captions_train", "person_keypoints_val"):
        (tmp_path / "annotations" / f"{name}.json").write_text('{"images": [], "annotations": []}')
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val)) == (3, 3)
    assert "files that are not images are not read: 2 .json" in data.notes


def test_one_category_of_two_ids_is_one_class(tmp_path):
    """Classes are merged by name, within a file and between splits."""
    save_image(tmp_path / "a.png", (64, 32))
    document = coco_document({"a": ((64, 32), [BEE, ("ant", 0, 0, 4, 4, False)])}, ["ant", "bee"])
    document["categories"][0]["name"] = "bee"
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    data = open_data(str(tmp_path))
    assert (data.classes, data.val.sample(0)["classes"].tolist()) == (["bee"], [0, 0])
    assert any("several categories have one name and are one class: bee" in note for note in data.notes)


def test_crowds_alone_are_no_class(tmp_path):
    """A class whose objects are all ignored cannot be learned."""
    save_image(tmp_path / "a.png", (64, 32))
    objects = [BEE, ("ant", 0, 0, 4, 4, True), ("bee", 0, 0, 9, 9, True)]
    (tmp_path / "boxes.json").write_text(json.dumps(coco_document({"a": ((64, 32), objects)}, ["ant", "bee"])))
    data = open_data(str(tmp_path))
    assert data.classes == ["bee"]
    assert data.val.sample(0)["ignored"].tolist() == [False, True]
    assert "classes without boxes are not used: ant" in data.notes


def test_a_zip_of_a_folder_with_boxes(tmp_path, monkeypatch):
    """It is opened as its folder; messages name the zip."""
    monkeypatch.setenv("VISMOE_CACHE", str(tmp_path / "cache"))
    write_voc(tmp_path / "set", scene(("train", "val")))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    data = open_data(str(tmp_path / "set.zip"))
    assert (len(data.train), len(data.val), data.has_boxes) == (3, 3, True)


def test_copies_stay_in_one_split_and_images_without_boxes_are_in_both(tmp_path):
    """The random split of classification sets: an image, its copy and the images without objects."""
    generator = torch.Generator().manual_seed(0)
    for number in range(16):
        pixels = torch.randint(256, (32, 32), generator=generator, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        image.save(tmp_path / f"{number}.png")
        objects = [] if number % 2 else [BEE]
        (tmp_path / f"{number}.xml").write_text(voc_document(str(number), (32, 32), objects))
        if number < 4:
            image.save(tmp_path / f"copy{number}.png")
            (tmp_path / f"copy{number}.xml").write_text(voc_document(f"copy{number}", (32, 32), objects))
    data = open_data(str(tmp_path), split_seed=0)
    for split in data.train_and_val:
        assert {len(split.sample(index)["boxes"]) for index in range(len(split))} == {0, 1}
        for name in names(split):
            assert "copy" in name or int(name) >= 4 or f"copy{name}" in names(split)
    again = open_data(str(tmp_path), split_seed=0, moved=data.moved)
    assert again.val.files == data.val.files
    whole = open_data(str(tmp_path))
    divided, _ = split_data(whole, find_duplicates(fingerprint_all(whole, 0.0)[1]), seed=1)
    assert len(divided.train) + len(divided.val) == 20
    assert {row.any().item() for row in divided.val.labels} == {True, False}


def test_damaged_images_are_left_out(tmp_path):
    """One without a header at opening, one with damaged pixels when all are decoded, as in other sets."""
    written = scene(("train", "val"))
    write_voc(tmp_path, written)
    (tmp_path / "JPEGImages" / "a0.png").write_bytes(b"no image")
    path = tmp_path / "JPEGImages" / "a1.png"
    path.write_bytes(path.read_bytes()[:-25])
    data = open_data(str(tmp_path))
    assert [entry.file for entry in data.left_out] == ["JPEGImages/a0.png"]
    assert names(data.val) == ["a1", "b1", "c1"]
    checked = check_images(data, 0.5)
    assert [entry.file for entry in checked.left_out] == ["JPEGImages/a0.png", "JPEGImages/a1.png"]
    assert names(checked.val) == ["b1", "c1"]
    assert checked.val.sample(0)["boxes"].shape == (2, 4)


def test_an_image_that_changes_after_opening_is_not_used_with_its_boxes(tmp_path):
    """Boxes and image have one canvas, or there is an error that names the file."""
    write_voc(tmp_path, scene(("train", "val")))
    data = open_data(str(tmp_path))
    save_image(tmp_path / "JPEGImages" / "a0.png", (32, 64))
    with pytest.raises(ValueError, match=r"a0.png cannot be read as an image: it has 32 × 64 pixels, but 64 × 32"):
        data.train.sample(0)


def test_a_summary_counts_boxes(tmp_path):
    """Boxes of each class, their median size, COCO's areas, images without boxes: counted by hand."""
    objects = [("bee", 0, 0, 10, 20, False), ("bee", 0, 0, 32, 32, False), ("ant", 0, 0, 96, 95, False)]
    objects += [("ant", 0, 0, 128, 128, False), ("ant", 0, 0, 5, 5, True)]
    for name, of_image in (("train/a", objects), ("val/b", objects[1:3]), ("val/c", [])):
        save_image(tmp_path / f"{name}.png", (128, 128))
        (tmp_path / f"{name}.xml").write_text(voc_document(name[-1], (128, 128), of_image))
    data = open_data(str(tmp_path))
    summary = summarise(data, find_duplicates(fingerprint_all(data, 0.0)[1]))
    assert summary["boxes"] == {
        "classes": [
            {"name": "ant", "train": 2, "test": 1, "width": 96, "height": 95},
            {"name": "bee", "train": 2, "test": 1, "width": 32, "height": 32},
        ],
        "images_without": {"train": 0, "test": 1},
        "small": 1,
        "medium": 4,
        "large": 1,
        "ignored": 1,
    }
    text = format_summary(summary)
    assert "boxes (median width × height): ant 2 + 1 (96 × 95), bee 2 + 1 (32 × 32)" in text
    assert "1 small, 4 medium, 1 large box (COCO's areas), 1 ignored; 1 image without boxes" in text
    assert format_classes(data) == "2 classes, boxes: ant 2, bee 2"
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.slow
def test_bccd_has_the_boxes_that_are_known():
    """364 blood smears with the splits of the set: counts of its annotations, of which two have no area."""
    folder = os.environ.get("VISMOE_BCCD")
    if not folder:
        pytest.skip("VISMOE_BCCD is not set: the folder of BCCD with JPEGImages/, Annotations/ and ImageSets/")
    data = open_data(folder)
    assert [len(split) for split in (data.train, data.val, data.test)] == [205, 87, 72]
    assert data.classes == ["Platelets", "RBC", "WBC"]
    counts = torch.zeros(3, dtype=torch.int64)
    for split in (data.train, data.val, data.test):
        for index in range(len(split)):
            counts += split.further["classes"](index).bincount(minlength=3)
    assert counts.tolist() == [361, 4153, 372]  # of 4,155 red cells two have no area
    assert any(note.startswith("2 boxes have no area") for note in data.notes)
    assert data.left_out == ()
