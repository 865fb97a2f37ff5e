"""pytest tests/data/boxes/test_formats.py: the same boxes in four formats are the same samples."""

import json
import pickle
from pathlib import PurePosixPath

import pytest
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from vismoe.data import open_data

from .writers import WRITERS, save_image, scene, voc_document, write_coco, write_metadata, write_voc, write_yolo


def content(images):
    """For each image, by its name, its size and its objects: what a format cannot change."""
    result = {}
    for index, file in enumerate(images.files):
        sample = images.sample(index)
        assert isinstance(sample["boxes"], tv_tensors.BoundingBoxes)
        assert sample["boxes"].canvas_size == sample["image"].size[::-1]
        values = sample["boxes"].tolist(), sample["classes"].tolist(), sample["ignored"].tolist()
        result[PurePosixPath(file).stem] = sample["image"].size, sorted(zip(*values, strict=True))
    return result


def expected(scene, split, classes):
    return {
        name: (size, sorted(([*map(float, each[1:5])], classes.index(each[0]), each[5]) for each in objects))
        for name, (size, objects) in scene.of(split).items()
    }


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_set_with_splits(tmp_path, name, ignored):
    """Each format gives the boxes, classes and splits that were written, and the images without boxes."""
    ignores = ignored and name != "yolo"  # which has no such mark
    written = scene(ignored=ignores)
    WRITERS[name](tmp_path, written)
    data = open_data(str(tmp_path), split_seed=0)
    assert (data.classes, data.has_boxes, data.multi_label) == (["ant", "bee"], True, True)
    for split, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        assert content(images) == expected(written, split, data.classes)
        assert images.labels.tolist() == [[not ignores, True], [True, True], [False, False]]
    assert data.left_out == ()
    assert data.notes[0].endswith(", 12 boxes on 9 images")
    assert "3 images have no boxes" in data.notes
    assert not any("not read" in note for note in data.notes)
    said = "3 boxes are of a crowd or difficult: not trained on, and no metric depends on whether they are found"
    assert (said in data.notes) == ignores


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_without_splits(tmp_path, name):
    """Without a seed all images are for evaluation; with one they are split, images without boxes too."""
    written = scene(("",) * 3)
    WRITERS[name](tmp_path, written)
    data = open_data(str(tmp_path))
    assert data.train is None
    assert content(data.val) == expected(written, "", data.classes)
    split = open_data(str(tmp_path), split_seed=0, moved=())
    assert {**content(split.train), **content(split.val)} == content(data.val)
    assert all(len(part) and not part.labels.any(1).all() for part in split.train_and_val)


def test_samples_survive_pickling_and_changes(tmp_path):
    """Workers get the set by pickle; a transform that writes into a sample does not change the set."""
    written = scene()
    write_voc(tmp_path, written)
    images = pickle.loads(pickle.dumps(open_data(str(tmp_path)).train))
    before = expected(written, "train", ["ant", "bee"])
    assert content(images) == before
    sample = images.sample(0)
    for value in ("boxes", "classes"):
        sample[value].zero_()
    assert content(images) == before
    empty = images.sample(2)
    assert (empty["boxes"].shape, empty["classes"].shape, empty["ignored"].shape) == ((0, 4), (0,), (0,))
    for one in (sample, empty):
        types = one["boxes"].dtype, one["classes"].dtype, one["ignored"].dtype
        assert types == (torch.float32, torch.int64, torch.bool)


def test_classes_are_renumbered_as_a_network_has_them(tmp_path):
    """Labels and classes of boxes take the network's numbers."""
    write_coco(tmp_path, scene())
    data = open_data(str(tmp_path)).align_classes(["cat", "bee", "ant"])
    sample = data.train.sample(0)
    assert sample["classes"].tolist() == [1, 2]
    assert sample["label"].tolist() == [False, True, True]
    assert data.train.subset([1]).sample(0)["classes"].tolist() == [2, 1]
    with pytest.raises(ValueError, match="bee"):
        open_data(str(tmp_path)).align_classes(["ant"])


def test_coco_is_read_as_pycocotools_reads_it(tmp_path):
    """The reference reader finds the same boxes, classes and crowds."""
    coco = pytest.importorskip("pycocotools.coco")
    write_coco(tmp_path, scene(("train", "val"), ignored=True))
    images = open_data(str(tmp_path)).train
    reference = coco.COCO(str(tmp_path / "annotations" / "instances_train.json"))
    ids = {entry["file_name"]: number for number, entry in reference.imgs.items()}
    for index, file in enumerate(images.files):
        annotations = reference.loadAnns(reference.getAnnIds([ids[PurePosixPath(file).name]]))
        sample = images.sample(index)
        corners = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in annotations)]
        assert sample["boxes"].tolist() == corners
        assert [["ant", "bee"][number] for number in sample["classes"]] == [
            reference.cats[each["category_id"]]["name"] for each in annotations
        ]
        assert sample["ignored"].tolist() == [bool(each["iscrowd"]) for each in annotations]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", ["of the stored image", "of the upright image", "not given"])
def test_boxes_follow_the_orientation_of_their_image(tmp_path, orientation, size):
    """The object is where the box says, whichever image a tool has annotated: checked by its pixels. Without a size,
    and if the size does not tell, boxes are of the upright image."""
    stored = Image.new("L", (40, 24))
    stored.paste(255, (4, 6, 12, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    swapped = orientation > 4
    width, height = (24, 40) if swapped and size != "of the stored image" else (40, 24)
    with Image.open(tmp_path / "a.png") as image:
        box = ImageOps.exif_transpose(image).getbbox()
    if swapped and size == "of the stored image":
        box = [4, 6, 12, 20]
    given = (0, 0) if size == "not given" else (width, height)
    (tmp_path / "a.xml").write_text(voc_document("a", given, [("bee", *box, False)]))
    data = open_data(str(tmp_path))
    sample = data.val.sample(0)
    assert tuple(map(int, sample["boxes"][0])) == sample["image"].getbbox()
    assert any("EXIF" in note for note in data.notes) == (swapped and size == "of the stored image")


def test_boxes_outside_are_clipped_and_those_without_area_left_out(tmp_path):
    """Both are counted, with an image as an example."""
    save_image(tmp_path / "a.png", (32, 32))
    objects = [
        ("bee", -4, 2, 20, 40, False),
        ("bee", 5, 5, 5, 9, False),
        ("bee", 40, 1, 50, 2, False),
        ("bee", 9, 9, 3, 20, False),
        ("bee", 0, 0, 32, 32, False),
    ]
    (tmp_path / "a.xml").write_text(voc_document("a", (32, 32), objects))
    data = open_data(str(tmp_path))
    assert data.val.sample(0)["boxes"].tolist() == [[0, 2, 20, 32], [0, 0, 32, 32]]
    assert "1 box reaches outside its image and is clipped: in a.png" in data.notes
    assert "3 boxes have no area and are left out, such as in a.png" in data.notes


def test_ordinary_files_have_edges_and_those_of_the_challenge_pixels(tmp_path):
    """A box of LabelImg's is taken as it is. In the files of the VOC challenge the first pixel is 1, so that a box of
    the whole image begins at 1 and ends at its width."""
    save_image(tmp_path / "a.png", (32, 16))
    text = voc_document("a", (32, 16), [("bee", 1, 1, 32, 16, False)])
    (tmp_path / "a.xml").write_text(text)
    assert open_data(str(tmp_path)).val.sample(0)["boxes"].tolist() == [[1, 1, 32, 16]]
    challenge = text.replace("<filename>", "<source><annotation>PASCAL VOC2007</annotation></source><filename>")
    (tmp_path / "a.xml").write_text(challenge)
    data = open_data(str(tmp_path))
    assert data.val.sample(0)["boxes"].tolist() == [[0, 0, 32, 16]]
    assert any("coordinates begin at 1" in note for note in data.notes)


def test_polygons_are_read_as_the_boxes_around_them(tmp_path):
    """A line of a segmentation set is a class and points; this is said."""
    write_yolo(tmp_path, scene())
    (tmp_path / "labels" / "train" / "a0.txt").write_text("1 0.25 0.5 0.5 0.25 0.75 1.0\n0 0.5 0.5 0.5 0.5\n")
    data = open_data(str(tmp_path))
    assert data.train.sample(0)["boxes"].tolist() == [[16, 8, 48, 32], [16, 8, 48, 24]]
    assert any(note.startswith("lines with polygons, such as in labels/train/a0.txt, are") for note in data.notes)


def test_objects_as_a_list(tmp_path):
    """Objects may be a list of objects, and classes numbers; other values become columns."""
    save_image(tmp_path / "a.png", (32, 32))
    save_image(tmp_path / "b.png", (32, 32))
    lines = [
        {"file_name": "a.png", "patient": 7, "objects": [{"bbox": [1, 2, 3, 4], "label": 10}]},
        {"file_name": "b.png", "patient": "x", "objects": [{"bbox": [1, 2, 3, 4], "label": 2}]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = open_data(str(tmp_path))
    assert (data.classes, data.val.columns) == (["2", "10"], {"patient": ["7", "x"]})
    assert data.val.sample(0)["boxes"].tolist() == [[1, 2, 4, 6]]


def test_a_group_stays_in_one_split(tmp_path):
    """Columns of a metadata.csv beside the annotations can be used as groups."""
    for number in range(12):
        save_image(tmp_path / f"{number}.png", (32, 32), number)
        (tmp_path / f"{number}.xml").write_text(voc_document(str(number), (32, 32), [("bee", 1, 1, 9, 9, False)]))
    table = "\n".join(f"{number}.png,{number // 3}" for number in range(12))
    (tmp_path / "metadata.csv").write_text(f"file_name,patient\n{table}\n")
    data = open_data(str(tmp_path), split_seed=0, group_column="patient")
    train, val = (set(split.columns["patient"]) for split in data.train_and_val)
    assert train
    assert val
    assert not train & val


def test_classes_come_in_the_order_of_the_annotations(tmp_path):
    """COCO's and YOLO's lists have an order; names without boxes are left out, and said."""
    written = scene(("train", "val"))
    written.classes = ["zebra", "bee", "ant"]
    for name, write in (("coco", write_coco), ("yolo", write_yolo)):
        write(tmp_path / name, written)
        data = open_data(str(tmp_path / name))
        assert data.classes == ["bee", "ant"]
        assert "classes without boxes are not used: zebra" in data.notes
    for name, write in (("voc", write_voc), ("metadata", write_metadata)):
        write(tmp_path / name, written)
        assert open_data(str(tmp_path / name)).classes == ["ant", "bee"]


def test_names_that_differ_by_case_are_two_classes_with_a_note(tmp_path):
    """They may be a slip of the annotator."""
    save_image(tmp_path / "a.png", (32, 32))
    objects = [("Red cell", 1, 1, 9, 9, False), ("redcell", 2, 2, 9, 9, False)]
    (tmp_path / "a.xml").write_text(voc_document("a", (32, 32), objects))
    data = open_data(str(tmp_path))
    assert data.classes == ["Red cell", "redcell"]
    assert any("differ only by case or spaces: 'Red cell', 'redcell'" in note for note in data.notes)
