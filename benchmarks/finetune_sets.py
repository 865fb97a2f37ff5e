"""Makes the sets of the fine-tuning studies from Debian and npm packages, and from a folder of images with boxes.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb openclipart
    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0   # tar xzf each, into a folder of its own
    python benchmarks/finetune_sets.py --openclipart openclipart/usr/share/openclipart/png --google google/package \
        --twitter twitter/package --bccd BCCD --fashion /usr/share/datasets/fashion-mnist --out sets

Each set is a folder for `vismoe finetune`. It is made if its source is given:

- `openclipart`: 2,000 random drawings (public domain) in their 22 classes, without splits.
- `emoji`: Google's drawing style (Apache-2.0) for training, Twitter's (CC-BY-4.0) for testing, by category.
- `cells`: the boxes of BCCD (MIT; JPEGImages, Annotations, ImageSets), cut out, in three classes, with BCCD's split.
- `fashion2000`, `fashion6000`: the first images of Fashion-MNIST (MIT; Debian's dataset-fashion-mnist) for training,
  the first 2,000 of its test split for testing.
"""

import gzip
import json
import random
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tyro
from PIL import Image

DRAWINGS = 2000
FASHION_TEST = 2000
SIDES = ("xmin", "ymin", "xmax", "ymax")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def main(
    out: Path,
    openclipart: Path | None = None,
    google: Path | None = None,
    twitter: Path | None = None,
    bccd: Path | None = None,
    fashion: Path | None = None,
) -> None:
    """Make the sets whose source is given.

    Args:
        out: Folder of the sets; an existing set is an error.
        openclipart: Folder with the class folders of the drawings.
        google: The unpacked package; needs `twitter` too.
        twitter: The unpacked package; needs `google` too.
        bccd: The unpacked archive of blood cells with boxes.
        fashion: Folder with Fashion-MNIST's four files.
    """
    if openclipart:
        _openclipart(openclipart, _new(out / "openclipart"))
    if google and twitter:
        _emoji({"train": ("google", google), "val": ("twitter", twitter)}, _new(out / "emoji"))
    if bccd:
        _cells(bccd, _new(out / "cells"))
    if fashion:
        for images in (2000, 6000):
            _fashion(fashion, images, _new(out / f"fashion{images}"))


def _new(folder: Path) -> Path:
    if folder.exists():
        raise SystemExit(f"{folder} exists")
    return folder


def _openclipart(source: Path, out: Path) -> None:
    files = sorted(source.rglob("*.png"))
    for number, file in enumerate(random.Random(0).sample(files, DRAWINGS)):
        _copy(file, out / file.relative_to(source).parts[0] / f"{number}.png")


def _emoji(sources: dict[str, tuple[str, Path]], out: Path) -> None:
    for split, (style, package) in sources.items():
        for emoji in json.loads((package / "emoji.json").read_text()):
            if emoji[f"has_img_{style}"] and emoji["category"] != "Component":
                source = package / "img" / style / "64" / emoji["image"]
                _copy(source, out / split / emoji["category"] / emoji["image"])


def _cells(source: Path, out: Path) -> None:
    for split in ("train", "val", "test"):
        for name in (source / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            image = Image.open(source / "JPEGImages" / f"{name}.jpg").convert("RGB")
            objects = ElementTree.parse(source / "Annotations" / f"{name}.xml").iter("object")
            for number, found in enumerate(objects):
                left, top, right, bottom = (int(found.findtext(f"bndbox/{side}", "")) for side in SIDES)
                box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
                if box[0] < box[2] and box[1] < box[3]:
                    target = out / split / found.findtext("name", "") / f"{name}-{number}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    image.crop(box).save(target)


def _fashion(source: Path, images: int, out: Path) -> None:
    for split, file, wanted in (("train", "train", images), ("test", "t10k", FASHION_TEST)):
        pixels = np.frombuffer(gzip.decompress((source / f"{file}-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
        labels = gzip.decompress((source / f"{file}-labels-idx1-ubyte.gz").read_bytes())[8:]
        for number, image in enumerate(pixels.reshape(-1, 28, 28)[:wanted]):
            target = out / split / FASHION[labels[number]] / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    tyro.cli(main)
