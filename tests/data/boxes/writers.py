"""Writes one scene, small images with boxes, in each of the four formats."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

SUFFIX = ".png"


@dataclass
class Scene:
    """For each image its split, size and objects (class, left, top, right, bottom, ignored)."""

    images: dict[str, tuple[str, tuple[int, int], list[tuple]]]
    classes: list[str] = field(default_factory=lambda: ["ant", "bee"])

    @property
    def splits(self):
        return list(dict.fromkeys(split for split, _, _ in self.images.values()))

    def of(self, split):
        return {name: image[1:] for name, image in self.images.items() if image[0] == split}


def scene(splits=("train", "val", "test"), ignored=False):
    """Sides are powers of two, so that fractions of them are exact. Each split has an image without boxes."""
    images = {}
    for number, split in enumerate(splits):
        images[f"a{number}"] = split, (64, 32), [("bee", 4, 2, 20, 30, False), ("ant", 32, 0, 64, 8, ignored)]
        images[f"b{number}"] = split, (32, 64), [("ant", 1, 1, 9, 63, False), ("bee", 8, 16, 9, 17, False)]
        images[f"c{number}"] = split, (16, 16), []
    return Scene(images)


def save_image(path: Path, size, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).save(path)


def coco_document(images, classes, ids=7):
    """A document of COCO; its numbers begin at `ids`."""
    entries, annotations = [], []
    for image_id, (name, (size, objects)) in enumerate(images.items(), start=ids):
        entries.append({"id": image_id, "file_name": name + SUFFIX, "width": size[0], "height": size[1]})
        for label, left, top, right, bottom, ignored in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids + classes.index(label),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(ignored),
                }
            )
    categories = [{"id": ids + number, "name": name} for number, name in enumerate(classes)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def write_coco(root: Path, scene: Scene):
    """As COCO's own: annotations/instances_SPLIT.json beside a folder of images for each split. Ids differ."""
    for number, split in enumerate(scene.splits):
        for name, (size, _) in scene.of(split).items():
            save_image(root / f"{split or 'images'}" / (name + SUFFIX), size)
        path = root / "annotations" / (f"instances_{split}.json" if split else "instances.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco_document(scene.of(split), scene.classes, 10 * number)))


def voc_document(name, size, objects):
    lines = ["<annotation>", f"<filename>{name}{SUFFIX}</filename>"]
    lines += [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>"]
    for label, left, top, right, bottom, ignored in objects:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, right, bottom), strict=True)
        box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
        lines += [f"<object><name>{label}</name><difficult>{int(ignored)}</difficult><bndbox>{box}</bndbox></object>"]
    return "\n".join([*lines, "</annotation>"])


def write_voc(root: Path, scene: Scene):
    """As the VOC challenge: JPEGImages/, Annotations/, and ImageSets/Main/SPLIT.txt."""
    (root / "Annotations").mkdir(parents=True)
    for split in scene.splits:
        for name, (size, objects) in scene.of(split).items():
            save_image(root / "JPEGImages" / (name + SUFFIX), size)
            (root / "Annotations" / f"{name}.xml").write_text(voc_document(name, size, objects))
        if split:
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(scene.of(split)) + "\n")


def yolo_lines(size, objects, classes):
    lines = []
    for label, left, top, right, bottom, _ in objects:
        width, height = (right - left) / size[0], (bottom - top) / size[1]
        x, y = left / size[0] + width / 2, top / size[1] + height / 2
        lines.append(f"{classes.index(label)} {x} {y} {width} {height}")
    return "\n".join(lines)


def write_yolo(root: Path, scene: Scene):
    """As Ultralytics: images/SPLIT/ and labels/SPLIT/, and a data.yaml. An image without objects has no text file."""
    for split in scene.splits:
        for name, (size, objects) in scene.of(split).items():
            save_image(root / "images" / split / (name + SUFFIX), size)
            if objects:
                path = root / "labels" / split / f"{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(yolo_lines(size, objects, scene.classes))
    keys = "".join(f"{split}: images/{split}\n" for split in scene.splits if split)
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(scene.classes))
    (root / "data.yaml").write_text(f"path: .\n{keys}names:\n{names}\n")


def write_metadata(root: Path, scene: Scene):
    """As Hugging Face's datasets: SPLIT/metadata.jsonl beside the images."""
    for split in scene.splits:
        lines = []
        for name, (size, objects) in scene.of(split).items():
            save_image(root / split / (name + SUFFIX), size)
            value = {
                "bbox": [[left, top, right - left, bottom - top] for _, left, top, right, bottom, _ in objects],
                "category": [each[0] for each in objects],
                "iscrowd": [int(each[-1]) for each in objects],
            }
            lines.append(json.dumps({"file_name": name + SUFFIX, "objects": value}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "metadata": write_metadata}
