"""A folder of small images with coloured rectangles and their boxes, and a recipe that trains on it in seconds."""

from pathlib import Path

from PIL import Image, ImageDraw

from tests.data.boxes.writers import yolo_lines
from vismoe.data import mix_seeds
from vismoe.training import Recipe

CLASSES = {"red": (220, 40, 30), "blue": (40, 60, 220)}
MODEL = "vmoe_pico_patch4_28_every2_e8"


def write_scenes(root: Path, empty: bool = False) -> Path:
    """Writes a folder in YOLO's layout: twelve training and five validation images, 40 to 72 pixels wide, with up to
    four objects; every fifth has none.

    **Arguments:**

    - `root`: the folder.
    - `empty`: whether the validation images have no objects; default False.
    """
    names = list(CLASSES)
    for split, count in (("train", 12), ("val", 5)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(count):
            draws = [mix_seeds(len(split), number, place) for place in range(40)]
            size = 40 + 8 * (draws[0] % 5), 40 + 8 * (draws[1] % 3)
            image = Image.new("RGB", size, (180 + draws[2] % 40,) * 3)
            objects = []
            objects_of_image = 0 if number % 5 == 4 or (empty and split == "val") else 1 + draws[3] % 4
            for place in range(objects_of_image):
                kind, width, height, x, y = draws[5 + 5 * place : 10 + 5 * place]
                width, height = 8 + width % 16, 8 + height % 16
                left, top = x % (size[0] - width), y % (size[1] - height)
                name = names[kind % 2]
                ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), CLASSES[name])
                objects.append((name, left, top, left + width, top + height, False))
            image.save(root / "images" / split / f"{number}.png")
            (root / "labels" / split / f"{number}.txt").write_text(yolo_lines(size, objects, names))
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [red, blue]\n")
    return root


def tiny(data: Path, **changes: object) -> Recipe:
    """Four steps of four images of 32 × 32 pixels, on the CPU."""
    fixed = {"model": MODEL, "image_size": 32, "steps": 4, "batch_size": 4, "warmup_steps": 1, "device": "cpu"}
    return Recipe(**{"data": str(data), "scale": 0.2, "flip": 0.5, "crop": 0.8} | fixed | changes)
