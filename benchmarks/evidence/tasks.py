"""What networks are asked in the study: sets of `vismoe`, whose test part is of views that training never shows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vismoe.data import Data, ImageSet, training_transform

from .pictures import opened, picture_of

PIXELS = 48
AUGMENTATION = {"crop": 0.5, "degrees": 15.0, "color_jitter": 0.4, "noise": 0.05, "erase": 0.5}
"""Training views: random crops, rotation, colour, noise, occlusion."""
VIEWS = 2
"""Of each picture in the test part, and in the validation part."""
WHITE = (255, 255, 255, 255)


def blurred(picture: Image.Image, draw: Callable[..., float]) -> Image.Image:
    """Gaussian blur of 1 to 2 pixels."""
    return functional.gaussian_blur(_on(picture, WHITE), [9, 9], [draw(1.0, 2.0)] * 2)


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
    """`data`, whose held-out part is of held-out views; `validation`: the same with views of the training family, to
    choose by; `view`: the kind of each test view; `picture`: which picture it shows."""

    data: Data
    validation: Data
    view: list[str]
    picture: list[int]


def which_picture(root: Path, classes: int) -> Task:
    """ "Which picture is this?" for a random `classes` of the pictures (0: all): each of them a class of its own."""
    pixels, _ = opened(root)
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[: classes or None])
    cut = pixels[chosen]
    white = _on_white(cut)
    picture = [index for index in range(len(cut)) for _ in range(VIEWS)]
    view = [KINDS[(index // 2 + 2 * number + index % 2) % 4] for index in range(len(cut)) for number in range(VIEWS)]
    labels, name = torch.arange(len(cut)), f"which-picture-{classes or 'all'}"
    train = ImageSet(labels, partial(picture_of, white))

    def shown(views: np.ndarray) -> Data:
        names = [str(number) for number in chosen]
        return Data(name, names, train, ImageSet(labels[picture], partial(picture_of, views)))

    test = [_held_out(cut, *each, seed) for seed, each in enumerate(zip(picture, view, strict=True))]
    return Task(shown(np.stack(test)), shown(np.stack(_training_views(white, picture))), view, picture)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _held_out(pixels: np.ndarray, index: int, kind: str, seed: int) -> np.ndarray:
    picture = picture_of(pixels, index).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    return np.asarray(HELD_OUT[kind](picture, np.random.default_rng(seed).uniform))


def _training_views(pixels: np.ndarray, picture: list[int]) -> list[np.ndarray]:
    config: dict[str, Any] = {
        "input_size": (3, PIXELS, PIXELS),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    transform, made = training_transform(config, **AUGMENTATION), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**40)  # no seed of a run
        for index in picture:
            view = transform(picture_of(pixels, index))
            made.append(((view + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return made
