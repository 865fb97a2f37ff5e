"""Figures of a set: load, classes, positions, information, galleries, and experts that go together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vismoe.files.figures import new_figure, plain_text

from ..analysis import Information, LayerAnalysis, SetAnalysis
from ..gallery import MOST, SIDE
from ..parts import WithoutExpert
from ..routing_figure import expert_colours, label_experts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILES = 8
"""Number of experts side by side in the maps of positions."""


def load_figure(analysis: SetAnalysis) -> "Figure":
    """The share of the choices that each expert got, layer by layer. The line is an even load."""
    figure, axes = _panels(len(analysis.layers), 2.6)
    shares = [layer.load.double() / layer.load.sum().clamp_min(1) for layer in analysis.layers]
    highest = max(float(share.max()) for share in shares)
    for axis, layer, share in zip(axes, analysis.layers, shares, strict=True):
        axis.bar(
            range(len(share)), share.tolist(), color=expert_colours(len(share))[:-1], edgecolor="#555", linewidth=0.5
        )
        axis.axhline(1 / len(share), color="black", linewidth=0.8, linestyle="--")
        axis.set_ylim(0, 1.05 * highest)  # the same for all layers
        label_experts(axis.xaxis, len(share))
        _titled(axis, layer.name, "expert", "share of the choices")
    return figure


def class_figure(analysis: SetAnalysis) -> "Figure":
    """The share of each class's tokens that each expert got."""
    figure, axes = _panels(len(analysis.layers), 3.6)
    counts = [layer.by_class for layer in analysis.layers if layer.by_class is not None]
    shares = [count / count.sum(0).clamp_min(1) for count in counts]
    highest = max(float(share.max()) for share in shares)
    for axis, layer, share in zip(axes, analysis.layers, shares, strict=True):
        image = axis.imshow(share.numpy(), aspect="auto", cmap="magma", vmin=0, vmax=highest)
        label_experts(axis.yaxis, len(share))
        _titled(axis, layer.name, "", "expert")
        if len(analysis.classes) <= 40:
            axis.set_xticks(range(len(analysis.classes)), [_short(name) for name in analysis.classes], rotation=90)
        figure.colorbar(image, ax=axis).ax.tick_params(labelsize=7)
    return figure


def position_figure(layer: LayerAnalysis) -> "Figure":
    """For each expert, how often it gets the patch at each place, relative to an even choice: white is as often, red
    more often, blue less often."""
    counts: Tensor = layer.by_position.double()
    ratio: Tensor = counts / counts.mean((1, 2), keepdim=True).clamp_min(1e-9)
    ratio[layer.load == 0] = torch.nan  # a dead expert's map is empty
    across = min(TILES, len(ratio))
    down = -(-len(ratio) // across)
    rows, columns = layer.grid
    sheet = torch.full((down * (rows + 1), across * (columns + 1)), torch.nan, dtype=torch.float64)
    figure = new_figure(1.2 * across + 1, 1.0 * down * rows / columns + 0.3 * down + 0.3)
    axis = figure.subplots()
    for expert in range(len(ratio)):
        top, left = expert // across * (rows + 1), expert % across * (columns + 1)
        sheet[top : top + rows, left : left + columns] = ratio[expert]
        axis.text(left + columns / 2 - 0.5, top - 0.6, f"expert {expert}", fontsize=7, ha="center", va="bottom")
    image = axis.imshow(sheet.numpy(), cmap="RdBu_r", vmin=0, vmax=2)
    axis.set_axis_off()
    axis.set_ylim(len(sheet) - 0.5, -max(1.6, 0.3 * rows))
    bar = figure.colorbar(image, ax=axis, extend="max")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("times as often as elsewhere", fontsize=8)
    return figure


def information_figure(analysis: SetAnalysis) -> "Figure":
    """Mutual information of the expert and the class, and of the expert and the position, with the mean of shuffled
    controls, layer by layer."""
    panels: dict[str, list[Information | None]] = {
        "expert and class": [layer.by_class_information for layer in analysis.layers],
        "expert and position": [layer.by_position_information for layer in analysis.layers],
    }
    shown = {title: values for title, values in panels.items() if all(value is not None for value in values)}
    figure, axes = _panels(len(shown), 3.8)
    names = [layer.name for layer in analysis.layers]
    for axis, (title, values) in zip(axes, shown.items(), strict=True):
        places = np.arange(len(names))
        kept = [value for value in values if value is not None]
        axis.bar(places - 0.2, [value.value for value in kept], 0.4, label="measured", color="#0072b2")
        axis.bar(places + 0.2, [value.shuffled for value in kept], 0.4, label="shuffled", color="#bbbbbb")
        axis.set_xticks(places, names, rotation=30 if len(names) > 4 else 0)
        _titled(axis, title, "", "mutual information (bits)")
        axis.margins(y=0.2)  # room for the legend above the bars
        axis.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    return figure


def gallery_figure(layer: LayerAnalysis) -> "Figure":
    """The patches that each expert of a layer takes most surely, in a frame, with the patches around them."""
    side = max((max(image.size) for images in layer.gallery for image, _ in images), default=SIDE) + 4
    sheet = np.full((len(layer.gallery) * side, MOST * side, 3), 255, dtype=np.uint8)
    for expert, images in enumerate(layer.gallery):
        for place, (image, _) in enumerate(images):
            pixels = np.asarray(image)
            top, left = expert * side + 2, place * side + 2
            sheet[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    figure = new_figure(8.5, 0.5 + 0.66 * len(layer.gallery))
    axis = figure.subplots()
    axis.imshow(sheet, interpolation="nearest", aspect="equal")
    dead = set(layer.dead)
    labels = [f"expert {n}{' (dead)' if n in dead else ''}" for n in range(len(layer.gallery))]
    axis.set_yticks([(n + 0.5) * side for n in range(len(labels))], labels, fontsize=8)
    axis.set_xticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def together_figure(analysis: SetAnalysis) -> "Figure":
    """Of the patches that go to an expert of one layer, the share that goes to each expert of the next."""
    pairs = [
        (layer, following.name)
        for layer, following in zip(analysis.layers, analysis.layers[1:], strict=False)
        if layer.together is not None
    ]
    figure, axes = _panels(len(pairs), 3.0)
    counts = [layer.together for layer, _ in pairs if layer.together is not None]
    shares: list[Tensor] = [count / count.sum(1, keepdim=True).clamp_min(1) for count in counts]
    highest = max(float(share.max()) for share in shares)
    for axis, (layer, following), share in zip(axes, pairs, shares, strict=True):
        image = axis.imshow(share.numpy(), cmap="magma", vmin=0, vmax=highest)
        label_experts(axis.yaxis, share.shape[0])
        label_experts(axis.xaxis, share.shape[1])
        _titled(axis, "", f"expert of {following}", f"expert of {layer.name}")
        figure.colorbar(image, ax=axis).ax.tick_params(labelsize=7)
    return figure


def without_figure(rows: Sequence[WithoutExpert], metric: str | None, has_loss: bool) -> "Figure":
    """How much the score and the loss change without each expert, layer by layer. `metric`: name of the score; None: it
    is not shown."""
    names = list(dict.fromkeys(row.layer for row in rows))
    measures = ([(metric, "change")] if metric else []) + ([("loss", "loss_change")] if has_loss else [])
    figure, axes = _panels(len(names) * len(measures), 2.6)
    for number, (title, field) in enumerate(measures):
        own_axes = axes[number * len(names) : (number + 1) * len(names)]
        for axis, name in zip(own_axes, names, strict=True):
            own = [row for row in rows if row.layer == name]
            colours = expert_colours(len(own))[:-1]
            values = [getattr(row, field) for row in own]
            axis.bar([row.expert for row in own], values, color=colours, edgecolor="#555", linewidth=0.5)
            axis.axhline(0, color="black", linewidth=0.8)
            axis.sharey(own_axes[0])
            label_experts(axis.xaxis, len(own))
            _titled(axis, name, "expert left out", f"change of {title}")
    return figure


def _panels(number: int, width: float) -> tuple["Figure", list[Any]]:
    """A figure with panels in rows of at most four."""
    across = min(number, 4)
    down = -(-number // across)
    figure = new_figure(max(width * across, 4), 2.9 * down)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for axis in axes[number:]:
        axis.axis("off")
    return figure, axes[:number]


def _titled(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)


def _short(name: str) -> str:
    return plain_text(name if len(name) <= 16 else f"{name[:15]}…")
