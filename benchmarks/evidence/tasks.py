"""What networks are asked in the study: sets of `vismoe`, whose training views are made once, for all runs.

PYTHONPATH=benchmarks python -m evidence.tasks      # those of the decisive task, some minutes
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vismoe.data import Data, ImageSet, open_data, training_transform

from .kept import kept
from .pictures import opened, picture_of

PIXELS = 36
AUGMENTATION = {"crop": 0.7, "degrees": 10.0, "color_jitter": 0.3, "noise": 0.03, "erase": 0.25}
"""Training views: random crops, rotation, colour, noise, occlusion."""
CONFIG: dict[str, Any] = {
    "input_size": (3, PIXELS, PIXELS),
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
VIEWS = 2
"""Of each picture in the test part, and in the validation part."""
WHITE = (255, 255, 255, 255)


def blurred(picture: Image.Image, draw: Callable[..., float]) -> Image.Image:
    """Gaussian blur of 0.75 to 1.5 pixels."""
    return functional.gaussian_blur(_on(picture, WHITE), [9, 9], [draw(0.75, 1.5)] * 2)


def slanted(picture: Image.Image, draw: Callable[..., float]) -> Image.Image:
    """Seen from aside: each corner moves inwards by up to a third of the side, by a fifth at least in one of them."""
    corners = [(0, 0), (PIXELS - 1, 0), (PIXELS - 1, PIXELS - 1), (0, PIXELS - 1)]
    moved = [
        [round(x + (1 if x == 0 else -1) * draw(0, PIXELS / 3)), round(y + (1 if y == 0 else -1) * draw(0, PIXELS / 3))]
        for x, y in corners
    ]
    moved[0][0] = max(moved[0][0], PIXELS // 5)
    return functional.perspective(
        _on(picture, WHITE), [list(c) for c in corners], moved, InterpolationMode.BILINEAR, fill=[255, 255, 255]
    )


def elsewhere(picture: Image.Image, draw: Callable[..., float]) -> Image.Image:
    """On a ground that runs from one colour to another, neither of them dark."""
    first, last = (np.array([draw(96, 255) for _ in range(3)]) for _ in range(2))
    along = np.linspace(0, 1, PIXELS)[:, None, None]
    ground = np.broadcast_to(first + along * (last - first), (PIXELS, PIXELS, 3)).astype(np.uint8)
    if draw(0, 1) < 0.5:
        ground = ground.swapaxes(0, 1)
    return Image.alpha_composite(Image.fromarray(np.ascontiguousarray(ground)).convert("RGBA"), picture).convert("RGB")


def faded(picture: Image.Image, draw: Callable[..., float]) -> Image.Image:
    """A quarter to a half of its contrast."""
    return functional.adjust_contrast(_on(picture, WHITE), draw(0.25, 0.5))


HELD_OUT = {"blur": blurred, "perspective": slanted, "background": elsewhere, "contrast": faded}
KINDS = tuple(HELD_OUT)


def _on(picture: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")


@dataclass(frozen=True)
class Task:
    """`data`: trained on views, a picture's all of one class; its held-out part is what figures are of; `validation`:
    the same with another held-out part, to choose by."""

    data: Data
    validation: Data


def open_task(name: str, root: Path) -> Task:
    """One of TASKS. Its views are made where they are not there."""
    task, kind = TASKS[name].open(name, root), TASKS[name]
    assert task.data.train is not None
    if (found := (len(task.data.train), len(task.data.classes))) != (kind.pictures * kind.times, kind.classes):
        raise ValueError(f"{name} in {root} has {found} views and classes: it is another set than the study's")
    return task


def which_picture(classes: int, name: str, root: Path) -> Task:
    """ "Which picture is this?" for a random `classes` of the pictures (0: all): each a class of its own. Tested on
    held-out views; views to choose by are of the training family."""
    pixels, _ = opened(root)
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[: classes or None])
    cut, labels = pixels[chosen], torch.arange(len(chosen))
    white = _on_white(cut)
    picture = [index for index in range(len(cut)) for _ in range(VIEWS)]
    names, train = [str(number) for number in chosen], _train(name, root, white, labels)

    def shown(part: str, make: Callable[[], np.ndarray]) -> Data:
        views = kept(root / f"{part}-{name}.npy", make)
        return Data(name, names, train, ImageSet(labels[picture], partial(picture_of, views)))

    test = shown("test", lambda: _held_out(cut, picture))
    return Task(test, shown("validation", lambda: _views(white, picture, 2**40)))


def kinds(pictures: int) -> list[str]:
    """How each of the test views is made, VIEWS of each picture in turn."""
    return [KINDS[(index // 2 + 2 * number + index % 2) % 4] for index in range(pictures) for number in range(VIEWS)]


def clothes(name: str, root: Path) -> Task:
    """Fashion-MNIST: ten classes, its own 10,000 test pictures."""
    data = open_data("fashion-mnist")
    assert data.train is not None
    white = np.stack([np.asarray(data.train.image(index).convert("RGB")) for index in range(len(data.train))])
    data = Data(name, data.classes, _train(name, root, white, data.train.labels), data.val)
    return Task(data, data)


def drawings_by_class(name: str, root: Path) -> Task:
    """The distinct drawings of openclipart in their 22 classes; a random fifth is the test."""
    pixels, rows = opened(root)
    those = np.array([number for number, row in enumerate(rows) if row["collection"] == "openclipart"])
    names = sorted({rows[number]["category"] for number in those})
    labels = torch.tensor([names.index(rows[number]["category"]) for number in those])
    white, order = _on_white(pixels[those]), np.random.default_rng(0).permutation(len(those))
    rest, test = order[len(those) // 5 :], order[: len(those) // 5]
    val = ImageSet(labels[test], partial(picture_of, white[test]))
    data = Data(name, names, _train(name, root, white[rest], labels[rest]), val)
    return Task(data, data)


@dataclass(frozen=True)
class Kind:
    """How a task is opened, by its name and the study's folder, and how large it is: `times` views of each of so many
    `pictures` are there to be trained on."""

    open: Callable[[str, Path], Task]
    pictures: int
    classes: int
    times: int = 96


DECISIVE = "which-picture-4000"
TASKS = {
    DECISIVE: Kind(partial(which_picture, 4000), 4000, 4000),
    "which-picture-1000": Kind(partial(which_picture, 1000), 1000, 1000, 384),
    "which-picture-all": Kind(partial(which_picture, 0), 10889, 10889, 48),
    "fashion-mnist": Kind(clothes, 60000, 10, 6),
    "openclipart-22": Kind(drawings_by_class, 3994, 22),
}


def _on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _held_out(pixels: np.ndarray, picture: Sequence[int]) -> np.ndarray:
    made = []
    for seed, (index, kind) in enumerate(zip(picture, kinds(len(pixels)), strict=True)):
        small = picture_of(pixels, index).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        made.append(np.asarray(HELD_OUT[kind](small, np.random.default_rng(seed).uniform)))
    return np.stack(made)


def _views(pixels: np.ndarray, picture: Sequence[int], first: int) -> np.ndarray:
    """A view of the training family of each picture, which follows from its seed: `first`, and on by ones."""
    transform, made = training_transform(CONFIG, **AUGMENTATION), []
    for seed, index in enumerate(picture, first):
        torch.default_generator.manual_seed(seed)
        view = transform({"image": picture_of(pixels, index)})["image"]
        made.append(((view + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return np.stack(made)


def _train(name: str, root: Path, pixels: np.ndarray, labels: torch.Tensor) -> ImageSet:
    times = TASKS[name].times

    def make() -> np.ndarray:
        print(f"making {times} views of each of {len(pixels)} pictures for {name}", flush=True)
        with ProcessPoolExecutor() as pool:
            return np.concatenate(list(pool.map(partial(_all_once, pixels), range(times))))

    views = kept(root / f"train-{name}.npy", make)
    return ImageSet(labels.repeat(times), partial(picture_of, views))


def _all_once(pixels: np.ndarray, time: int) -> np.ndarray:
    torch.set_num_threads(1)
    return _views(pixels, range(len(pixels)), time * len(pixels))
