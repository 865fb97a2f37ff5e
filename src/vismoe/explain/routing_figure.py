"""Plots the experts that routers chose."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from vismoe.data import ImageSet
from vismoe.files.figures import plain_text, save_figure
from vismoe.inference import Predictor
from vismoe.weights import data_config

from .routing import LayerRouting, route

SAMPLES, LETTERS = 10, 14
TITLE_SIZE, NARROWEST = 10, 5.2
"""Size of the letters of titles in points, and least width of the figure in inches."""
# The same colours and shades as in serve/page/overlay.js, so that an expert looks alike on the page and in a report.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#882255")
"""Colours that the colour-blind can tell apart (Okabe and Ito 2008), with Tol's wine for their black."""
SHADES = (0, 35, -30, 60)
"""Per cent of white, or of black, for experts 0–7, 8–15, 16–23 and 24–31; then from the start."""
LABELLED = 16
"""Most experts that all have their number at an axis."""


def routing_images(
    predictor: Predictor, images: ImageSet, classes: Sequence[str], folder: Path, note: str = ""
) -> Path | None:
    """Plots `routing.png`: the expert of each patch of sample images, layer by layer, and, if images have classes, the
    distribution of each class's tokens over the experts. Of a detector it shows the trunk; padding is black.

    **Arguments:**

    - `predictor`: the network.
    - `images`: data set of images; the figure shows some of them.
    - `classes`: names of the classes; empty: images have none.
    - `folder`: folder of the file.
    - `note`: second line of the title; default: none.

    **Returns:** the file; None, without a file, for a dense model or one whose tokens are not a grid of patches.
    """
    trunk = getattr(predictor.model, "trunk", predictor.model)
    grid_size: tuple[int, int] | None = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
    if grid_size is None or not (routing := route(predictor, images)):
        return None
    samples, rows = _samples(images.labels, SAMPLES), 1 + len(routing)
    height = 1.25 * rows + 0.3
    # So wide that the titles of the tables, one a layer, have room.
    width = max(1.15 * len(samples) + 0.4, (2.2 if classes else 0) * len(routing), NARROWEST)
    figure = Figure(figsize=(width, height + 2.9 * bool(classes)), layout="constrained")
    if classes:
        upper, lower = figure.subfigures(2, 1, height_ratios=[height, 2.9], squeeze=False)[:, 0]
        _heat_maps(lower, routing, images.labels, classes)
    else:
        upper = figure
    grid = upper.subplots(rows, len(samples), squeeze=False)
    config = data_config(predictor.model)
    first = " first" if any(layer.expert.shape[2] > 1 for layer in routing.values()) else ""
    has_prefix = any(layer.expert.shape[1] > grid_size[0] * grid_size[1] for layer in routing.values())
    frame = " (frame: the class token)" if has_prefix else ""
    shown = [predictor.prepare(images.sample(number)) for number in samples]
    padding = " (black: padding)" if any("mask" in sample and not sample["mask"].all() for sample in shown) else ""
    title = _wrapped(f"Which expert each patch went to{first}{frame}{padding}", width)
    note = _wrapped(note, width)
    upper.suptitle(f"{title}\n{note}" if note else title, fontsize=TITLE_SIZE)
    for column, (number, sample) in enumerate(zip(samples, shown, strict=True)):
        image = _pixels(sample["image"], config)
        _show(grid[0, column], image)
        if classes:
            grid[0, column].set_title(_title_of(images.labels[number], classes), fontsize=8)
        for row, layer in enumerate(routing.values(), start=1):
            _overlay(grid[row, column], image, layer, number, grid_size)
    for row, name in enumerate(routing, start=1):
        grid[row, 0].set_ylabel(_title(name), fontsize=9)
    path = folder / "routing.png"
    save_figure(figure, path, dpi=130)
    return path


def _wrapped(title: str, width: float) -> str:
    """A title in lines that are no wider than a figure; `width` in inches."""
    return "\n".join(wrap(title, int(width * 72 / (TITLE_SIZE * 0.6))))


def _heat_maps(figure: SubFigure, routing: Mapping[str, LayerRouting], labels: Tensor, classes: Sequence[str]) -> None:
    figure.suptitle("Share of the tokens of a class that each expert got", fontsize=TITLE_SIZE)
    counts = [layer.by_class(labels, len(classes)).float() for layer in routing.values()]
    shares = [(count / count.sum(0).clamp_min(1)).numpy() for count in counts]
    panels = figure.subplots(1, len(routing), squeeze=False)[0]
    top = max(float(share.max()) for share in shares)  # the same scale for all layers
    for axes, share, (name, layer) in zip(panels, shares, routing.items(), strict=True):
        _heat_map(axes, share, layer, classes, _title(name), top)


def _samples(labels: Tensor, number_of_samples: int) -> list[int]:
    """Indices of sample images: the first image of each class, then the second of each, … An image with several classes
    counts for the first of them."""
    if not labels.numel():
        return list(range(min(number_of_samples, len(labels))))
    images_of_class: dict[int, int] = {}
    order = []
    for number, label in enumerate((labels if labels.ndim == 1 else labels.int().argmax(1)).tolist()):
        images_of_class[label] = images_of_class.get(label, -1) + 1
        order.append((images_of_class[label], label, number))
    return [number for _, _, number in sorted(order)[:number_of_samples]]


def _title_of(label: Tensor, classes: Sequence[str]) -> str:
    """The class or classes of an image, in at most two lines."""
    numbers = label.nonzero()[:, 0].tolist() if label.ndim else [int(label)]
    names = ", ".join(classes[number] for number in numbers) or "nothing"
    lines = wrap(names, LETTERS, max_lines=2, placeholder=" …", break_long_words=False)
    return "\n".join(plain_text(line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…") for line in lines)


def _title(name: str) -> str:
    return name.removeprefix("trunk.").removesuffix(".mlp").replace("blocks.", "block ") or "layer"


def _pixels(tensor: Tensor, config: dict[str, Any]) -> np.ndarray:
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (tensor * std + mean).clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy()


def _show(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _overlay(axes: Axes, image: np.ndarray, layer: LayerRouting, number: int, grid: tuple[int, int]) -> None:
    expert = layer.expert[number, :, 0]
    patches, prefix = expert[-grid[0] * grid[1] :], expert[: -grid[0] * grid[1]]
    colours = expert_colours(layer.num_experts)
    height, width = (-(-side // patches_of_side) for side, patches_of_side in zip(image.shape, grid, strict=False))
    tint = colours[patches.numpy()].reshape(*grid, 3).repeat(height, 0).repeat(width, 1)
    tint = tint[: image.shape[0], : image.shape[1]]  # a convolutional stem pads the last row and column of patches
    # The image only darkens the colours a little, so that they stay distinct.
    ink = image.mean(-1, keepdims=True)
    _show(axes, tint * (0.62 + 0.38 * ink))
    for spine in axes.spines.values():
        spine.set(edgecolor=colours[prefix[0]] if len(prefix) else "black", linewidth=3 if len(prefix) else 0.8)


def expert_colours(num_experts: int) -> np.ndarray:
    """A colour for each expert, (E + 1, 3); the last, black, is for dropped tokens (-1)."""
    colours = []
    for expert in range(num_experts):
        own = np.array(to_rgb(COLOURS[expert % len(COLOURS)]))
        shade = SHADES[expert // len(COLOURS) % len(SHADES)] / 100
        colours.append(own + ((shade > 0) - own) * abs(shade))
    return np.concatenate([np.array(colours).reshape(-1, 3), np.zeros((1, 3))])


def label_experts(axis: Any, num_experts: int) -> None:
    """Labels the experts at an axis: all of them up to 16, of more evenly spaced ones."""
    axis.set_ticks(range(0, num_experts, 1 if num_experts <= LABELLED else -(-num_experts // 8)))


def _heat_map(
    axes: Axes, share: np.ndarray, layer: LayerRouting, classes: Sequence[str], title: str, top: float
) -> None:
    image = axes.imshow(share, aspect="auto", cmap="magma", vmin=0, vmax=top)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel("expert", fontsize=8)
    axes.tick_params(labelsize=7)
    label_experts(axes.yaxis, layer.num_experts)
    # Legend: a colour swatch to the left of each expert's row.
    key = axes.inset_axes((-0.045, 0, 0.03, 1))
    key.imshow(expert_colours(layer.num_experts)[:-1, None], aspect="auto")
    key.set(xticks=[], yticks=[])
    axes.tick_params(axis="y", pad=22, length=0)
    if len(classes) <= 30:
        axes.set_xticks(
            range(len(classes)), list(map(plain_text, classes)), rotation=90 if max(map(len, classes)) > 2 else 0
        )
    axes.figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
