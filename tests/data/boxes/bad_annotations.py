"""Broken annotations, and the message that each gets. docs/boxes.md has the same messages in a table
(test_bad_annotations.py compares them); `python -m tests.data.boxes.bad_annotations` prints the rows of that table."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vismoe.data import open_data

from .writers import coco_document, save_image, scene, voc_document, write_coco, write_voc, write_yolo

SIZE = 64, 32
BEE = ("bee", 4, 2, 20, 30, False)
FOLDER = "FOLDER"
"""Stands for the folder in messages."""


@dataclass(frozen=True)
class Case:
    """A broken folder.

    - `kind`: the format.
    - `fault`: what is wrong, for the table.
    - `write`: writes the folder.
    """

    kind: str
    fault: str
    write: Callable[[Path], object]

    def message(self, root: Path) -> str:
        """The message that the folder gets, written to `root`."""
        self.write(root)
        try:
            open_data(str(root))
        except ValueError as error:
            return str(error).replace(str(root), FOLDER)
        raise AssertionError(f"accepted: {self.kind}: {self.fault}")


def coco(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A folder of one image with a COCO file that was changed."""

    def write(root: Path) -> None:
        save_image(root / "a.png", SIZE)
        document = coco_document({"a": (SIZE, [BEE])}, ["ant", "bee"])
        change(document)
        (root / "boxes.json").write_text(json.dumps(document))

    return write


def coco_text(text: str) -> Callable[[Path], object]:
    return files({"boxes.json": text})


def files(texts: dict[str, str], *images: str) -> Callable[[Path], object]:
    """A folder of images, a.png and others, with text files."""

    def write(root: Path) -> None:
        for number, name in enumerate(("a.png", *images)):
            save_image(root / name, SIZE, number)
        for name, text in texts.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    return write


def voc(old: str, new: str) -> Callable[[Path], object]:
    """A folder of one image with an XML file in which a text was replaced."""
    text = voc_document("a", SIZE, [BEE])
    assert old in text
    return files({"a.xml": text.replace(old, new)})


def yolo(line: str, names: str = "names: [ant, bee]\nnc: 2\n") -> Callable[[Path], object]:
    """A folder of one image with a text file of one line."""
    return files({"a.txt": line, "data.yaml": names})


def metadata(line: str) -> Callable[[Path], object]:
    """A folder of two images with a metadata.jsonl, whose second line is given."""
    first = '{"file_name": "a.png", "objects": {"bbox": [[4, 2, 16, 28]], "category": ["bee"]}}'
    return files({"metadata.jsonl": f"{first}\n{line}"}, "b.png")


def both(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        for each in writers:
            each(root)

    return write


def with_splits(writer, change) -> Callable[[Path], object]:
    """The scene with splits, changed afterwards."""

    def write(root: Path) -> None:
        writer(root, scene(("train", "val")))
        change(root)

    return write


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def added(name: str, text: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).write_text((root / name).read_text() + text if (root / name).exists() else text)

    return change


def set_item(*keys) -> Callable[[dict], object]:
    """Sets a value in nested lists and dictionaries: keys, then the value."""
    *parents, last, value = keys

    def change(document) -> None:
        for key in parents:
            document = document[key]
        document[last] = value

    return change


BOMB = '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><annotation>'

COCO, VOC, YOLO, LINES = "COCO", "VOC", "YOLO", "metadata.jsonl"
CASES = (
    Case(COCO, "not JSON", coco_text('{"images": [],\n"annotations": [}')),
    Case(COCO, "no categories", coco(lambda document: document.pop("categories"))),
    Case(COCO, "an entry is no object", coco(set_item("annotations", 0, 5))),
    Case(COCO, "a key is missing", coco(lambda document: document["annotations"][0].pop("bbox"))),
    Case(COCO, "an unknown category", coco(set_item("annotations", 0, "category_id", 99))),
    Case(COCO, "an unknown image", coco(set_item("annotations", 0, "image_id", 99))),
    Case(COCO, "two images with one id", coco(lambda document: document["images"].append(document["images"][0]))),
    Case(
        COCO,
        "an image twice",
        coco(lambda document: document["images"].append(document["images"][0] | {"id": 1})),
    ),
    Case(COCO, "a category without a name", coco(set_item("categories", 0, "name", ""))),
    Case(COCO, "a box of three numbers", coco(set_item("annotations", 0, "bbox", [1, 2, 3]))),
    Case(COCO, "NaN", coco(set_item("annotations", 0, "bbox", [1, 2, 3, float("nan")]))),
    Case(COCO, "a number that is too large", coco(set_item("annotations", 0, "bbox", [1, 2, 3, 10**400]))),
    Case(COCO, "text instead of a number", coco(set_item("annotations", 0, "bbox", [1, 2, 3, "4"]))),
    Case(COCO, "`iscrowd` is neither 0 nor 1", coco(set_item("annotations", 0, "iscrowd", "no"))),
    Case(COCO, "no image is there", coco(set_item("images", 0, "file_name", "b.png"))),
    Case(COCO, "a size that is none", coco(set_item("images", 0, "width", -1))),
    Case(COCO, "the size of another image", coco(set_item("images", 0, "width", 640))),
    Case(
        COCO,
        "a name that two images have",
        both(coco(set_item("images", 0, "file_name", "b.png")), files({}, "x/b.png", "y/b.png")),
    ),
    Case(
        COCO,
        "two files without the name of a split",
        both(
            coco(lambda document: None),
            lambda root: (root / "more.json").write_bytes((root / "boxes.json").read_bytes()),
        ),
    ),
    Case(
        COCO,
        "a class in the validation split alone",
        with_splits(write_coco, replaced("annotations/instances_train.json", '"bee"', '"wasp"')),
    ),
    Case(COCO, "no boxes at all", coco(set_item("annotations", []))),
    Case(VOC, "not XML", voc("</annotation>", "")),
    Case(VOC, "a document type with entities", voc("<annotation>", BOMB)),
    Case(VOC, "a key is missing", voc("<xmax>20</xmax>", "")),
    Case(VOC, "no box", voc("bndbox", "polygon")),
    Case(VOC, "no name", voc("<name>bee</name>", "<name> </name>")),
    Case(VOC, "text instead of a number", voc("<xmax>20<", "<xmax>wide<")),
    Case(VOC, "NaN", voc("<xmax>20<", "<xmax>nan<")),
    Case(VOC, "`difficult` is neither 0 nor 1", voc("<difficult>0<", "<difficult>maybe<")),
    Case(VOC, "the size of another image", voc("<width>64<", "<width>640<")),
    Case(VOC, "no image is there", files({"b.xml": voc_document("b", SIZE, [BEE])})),
    Case(
        VOC,
        "two files of one image",
        files({name: voc_document("a", SIZE, [BEE]) for name in ("a.xml", "Annotations/a.xml")}),
    ),
    Case(
        VOC,
        "an image in two lists of splits",
        with_splits(write_voc, added("ImageSets/Main/val.txt", "a0\n")),
    ),
    Case(
        VOC,
        "images in folders of splits and beside them",
        files(
            {name: voc_document("a", SIZE, [BEE]) for name in ("a.xml", "train/b.xml", "val/c.xml")},
            "train/b.png",
            "val/c.png",
        ),
    ),
    Case(YOLO, "no names of classes", files({"labels/b.txt": "0 .5 .5 .5 .5"}, "images/b.png")),
    Case(YOLO, "data.yaml is not YAML", yolo("0 .5 .5 .5 .5", "names: [ant\nnc: 2\n")),
    Case(YOLO, "names are no list", yolo("0 .5 .5 .5 .5", "names: ant\nnc: 1\n")),
    Case(YOLO, "a name that YAML reads as a truth value", yolo("0 .5 .5 .5 .5", "names: [yes, no]\nnc: 2\n")),
    Case(YOLO, "`nc` is not the number of names", yolo("0 .5 .5 .5 .5", "names: [ant, bee]\nnc: 3\n")),
    Case(YOLO, "keypoints", yolo("0 .5 .5 .5 .5 .1 .2 2", "names: [ant, bee]\nnc: 2\nkpt_shape: [1, 3]\n")),
    Case(YOLO, "a folder is missing", yolo("0 .5 .5 .5 .5", "names: [ant, bee]\ntrain: images/train\n")),
    Case(YOLO, "data.yaml and classes.txt disagree", both(yolo("0 .5 .5 .5 .5"), files({"classes.txt": "bee\nant\n"}))),
    Case(YOLO, "no label files", files({"data.yaml": "names: [ant, bee]\nnc: 2\n"})),
    Case(YOLO, "a class outside the names", yolo("2 .5 .5 .5 .5")),
    Case(YOLO, "four numbers", yolo("1 .5 .5 .5")),
    Case(YOLO, "six numbers: a box with a confidence", yolo("0 .5 .5 .5 .5\n1 .5 .5 .5 .5 .9")),
    Case(YOLO, "text instead of a number", yolo("bee .5 .5 .5 .5")),
    Case(YOLO, "NaN", yolo("1 .5 .5 nan .5")),
    Case(YOLO, "pixels instead of fractions", yolo("1 12 16 16 28")),
    Case(
        YOLO,
        "an image in two splits",
        with_splits(write_yolo, replaced("data.yaml", "val: images/val", "val: [images/val, images/train]")),
    ),
    Case(LINES, "not JSON", metadata('{"file_name": "b.png", ')),
    Case(LINES, "no `file_name`", metadata('{"objects": {"bbox": [], "category": []}}')),
    Case(LINES, "a line without objects", metadata('{"file_name": "b.png"}')),
    Case(LINES, "no classes", metadata('{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3, 4]]}}')),
    Case(
        LINES,
        "fewer classes than boxes",
        metadata('{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": []}}'),
    ),
    Case(
        LINES,
        "a box of three numbers",
        metadata('{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3]], "category": ["bee"]}}'),
    ),
    Case(
        LINES,
        "NaN",
        metadata('{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3, NaN]], "category": ["bee"]}}'),
    ),
    Case(
        LINES,
        "an image twice",
        metadata('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": ["bee"]}}'),
    ),
    Case("any", "two formats", both(coco(lambda document: None), voc("<name>", "<name>"))),
)


def row(case: Case, root: Path) -> str:
    """The row of a case in the table of docs/boxes.md; its folder is written to `root`."""
    message = case.message(root).replace("|", "\\|")
    return f"| {case.kind} | {case.fault} | `{message}` |"


if __name__ == "__main__":
    for each in CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(each, Path(folder)))
