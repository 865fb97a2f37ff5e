"""Figures of one image: which expert each patch went to, what a capacity drops, and what the answer rests on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vismoe.files.figures import new_figure, plain_text

from ..parts import BoxExperts
from ..routing_figure import expert_colours, label_experts
from ..trace import ImageTrace, LayerTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL, SMALL_CELL, ACROSS = 3.3, 1.45, 3
"""Side of an image in inches, also where capacities are compared, and number of images side by side."""
FADE = 0.28
"""How much of the image is white below the colours."""
LEAST_NUMBER = 5.0
"""Size in points of the smallest number that is written into a patch."""


def routing_overlays(trace: ImageTrace) -> "Figure":
    """The image, its rollout if there is one, and each layer's experts: the colour is the first expert's, the strength
    its gate's, relative to the layer's largest."""
    panels = 1 + (trace.rollout is not None) + len(trace.layers)
    across = min(panels, ACROSS)
    down = -(-panels // across)
    figure = new_figure(CELL * across, (CELL + 0.3) * down + 0.5)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    _show(axes[0], np.asarray(trace.image), "image")
    if trace.rollout is not None:
        _show(axes[1], _heat(trace, trace.rollout), "attention rollout")
    for each, layer in zip(axes[panels - len(trace.layers) :], trace.layers, strict=False):
        _show(each, overlay(trace, layer), layer.name)
        _number(each, trace, layer, CELL)
    for each in axes[panels:]:
        each.axis("off")
    _legend(figure, max((layer.num_experts for layer in trace.layers), default=0))
    return figure


def capacity_overlays(traces: Mapping[tuple[float, bool], ImageTrace]) -> "Figure":
    """What each layer keeps: a row for each capacity, and for each layer two columns, by position and by batch
    priority. Dropped patches are black.

    **Arguments:** `traces`: traces by capacity and by whether tokens with larger gates come first.
    """
    capacities = sorted({capacity for capacity, _ in traces}, reverse=True)
    layers = next(iter(traces.values())).layers
    columns = [(number, priority) for number in range(len(layers)) for priority in (False, True)]
    figure = new_figure(SMALL_CELL * len(columns) + 0.6, 1.7 * len(capacities) + 0.3)
    grid = figure.subplots(len(capacities), len(columns), squeeze=False)
    for row, capacity in enumerate(capacities):
        for place, (number, priority) in enumerate(columns):
            trace = traces[capacity, priority]
            layer = trace.layers[number]
            order = "priority" if priority else "position"
            title = f"{layer.name}\nby {order}" if row == 0 else ""
            _show(grid[row, place], overlay(trace, layer), f"{title}\nkept {layer.kept_share:.0%}".strip(), 7)
            _number(grid[row, place], trace, layer, SMALL_CELL)
        grid[row, 0].set_ylabel(f"capacity {capacity:g}", fontsize=9)
    return figure


def part_figures(trace: ImageTrace, patches: Tensor | None, experts: Mapping[str, Tensor], answer: str) -> "Figure":
    """Each patch's part in the answer as a map, if it is known, and each expert's as bars, layer by layer."""
    panels = (patches is not None) + len(experts)
    figure = new_figure(2.8 * panels, 2.7)
    axes = figure.subplots(1, panels, squeeze=False)[0].tolist()
    of_experts = axes[panels - len(experts) :]
    figure.suptitle(f"Fall of the log-odds of {plain_text(answer)} without …", fontsize=10)
    if patches is not None:
        largest = max(float(patches.abs().max()), 1e-9)
        image = axes[0].imshow(patches.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes[0].set(xticks=[], yticks=[])
        axes[0].set_title("each patch", fontsize=9)
        figure.colorbar(image, ax=axes[0]).ax.tick_params(labelsize=7)
    for each, (name, parts) in zip(of_experts, experts.items(), strict=True):
        each.sharey(of_experts[0])
        label_experts(each.xaxis, len(parts))
        each.bar(
            range(len(parts)), parts.numpy(), color=expert_colours(len(parts))[:-1], edgecolor="#555", linewidth=0.5
        )
        each.axhline(0, color="black", linewidth=0.8)
        each.set_title(f"each expert of {name}", fontsize=9)
        each.tick_params(labelsize=7)
        each.set_xlabel("expert", fontsize=8)
    return figure


def box_figure(trace: ImageTrace, found: Sequence[BoxExperts]) -> "Figure":
    """The found boxes with their numbers, and beside them the share of each expert among a box's patches, layer by
    layer."""
    names = list(found[0].experts)
    figure = new_figure(3.4 + 2.4 * len(names), max(3.2, 0.22 * len(found) + 1))
    axes = figure.subplots(1, 1 + len(names), squeeze=False)[0].tolist()
    _show(axes[0], np.asarray(trace.image), "found boxes")
    vertical, horizontal = trace.sample["scale"].tolist()
    for number, each in enumerate(found, start=1):
        left, top, right, bottom = (
            s * scale for s, scale in zip(each.box.box, (horizontal, vertical) * 2, strict=True)
        )
        axes[0].plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="#ff3b30", linewidth=1.2)
        label = {"facecolor": "#ff3b30", "edgecolor": "none", "pad": 1}
        axes[0].text(left, top, str(number), fontsize=7, color="white", bbox=label, va="top", clip_on=True)
    axes[0].set(xlim=(-0.5, trace.image.width - 0.5), ylim=(trace.image.height - 0.5, -0.5))
    for axis, name in zip(axes[1:], names, strict=True):
        shares = torch.stack([each.experts[name].double() for each in found])
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1)
        colours, starts = expert_colours(shares.shape[1]), shares.cumsum(1) - shares
        for expert in range(shares.shape[1]):
            own, start = shares[:, expert].tolist(), starts[:, expert].tolist()
            axis.barh(range(1, len(found) + 1), own, left=start, color=colours[expert])
        axis.invert_yaxis()
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("share of the box's patches", fontsize=8)
        axis.tick_params(labelsize=7)
    _legend(figure, max(len(counts) for counts in found[0].experts.values()))
    return figure


def overlay(trace: ImageTrace, layer: LayerTrace) -> np.ndarray:
    """The image in pale grey with each patch in the colour of its first expert, as strong as its gate; black where it
    was dropped, uncoloured where it is padding."""
    expert, weight, mask = layer.expert[layer.prefix :, 0], layer.weight[layer.prefix :, 0], layer.mask[layer.prefix :]
    strength = 0.45 + 0.37 * weight / weight.max().clamp_min(1e-9)
    strength[expert < 0] = 0.9
    colours = torch.from_numpy(expert_colours(layer.num_experts)).float()[expert]
    strength[~mask] = 0.0
    tint, alpha = (_enlarged(table, layer.grid, trace) for table in (colours, strength[:, None]))
    # Grey and paler, as on the page of `vismoe serve`, so that the experts' colours stand out.
    grey = np.asarray(trace.image.convert("L"), dtype=np.float32)[..., None] / 255
    return np.clip(tint * alpha + (FADE + (1 - FADE) * grey) * (1 - alpha), 0, 1)


def _number(axes: "Axes", trace: ImageTrace, layer: LayerTrace, side: float) -> None:
    """Writes the number of the first expert into each patch, if patches are large enough. `side`: of the panel, in
    inches."""
    from matplotlib.patheffects import withStroke

    rows, columns = layer.grid
    size = 0.42 * 72 * 0.92 * side / max(rows, columns)  # axes are a little smaller than their cell
    if size < LEAST_NUMBER:
        return
    height, width = -(-trace.image.height // rows), -(-trace.image.width // columns)
    tables = (layer.expert[layer.prefix :, 0], layer.mask[layer.prefix :])
    for place, (expert, real) in enumerate(zip(*(table.tolist() for table in tables), strict=True)):
        if expert >= 0 and real:
            middle = (place % columns + 0.5) * width - 0.5, (place // columns + 0.5) * height - 0.5
            outline = [withStroke(linewidth=size / 6, foreground="#000000a6")]
            text: dict[str, Any] = {
                "color": "white",
                "ha": "center",
                "va": "center",
                "clip_on": True,
                "path_effects": outline,
            }
            axes.text(middle[0], middle[1], str(expert), fontsize=size, fontweight="bold", **text)


def _heat(trace: ImageTrace, shares: Tensor) -> np.ndarray:
    alpha = _enlarged((shares / shares.max()).flatten()[:, None], (shares.shape[0], shares.shape[1]), trace)
    return np.asarray(trace.image, dtype=np.float32) / 255 * (0.15 + 0.85 * alpha)


def _enlarged(table: Tensor, grid: tuple[int, int], trace: ImageTrace) -> np.ndarray:
    """A table of patches (rows · columns, n) as pixels (H, W, n) of the image."""
    height, width = trace.image.height, trace.image.width
    large = table.unflatten(0, grid).repeat_interleave(-(-height // grid[0]), 0)
    return large.repeat_interleave(-(-width // grid[1]), 1)[:height, :width].numpy()


def _show(axes: "Axes", pixels: Any, title: str, size: int = 9) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=size)


def _legend(figure: "Figure", experts: int) -> None:
    """The colours of the experts, below a figure."""
    from matplotlib.patches import Patch

    if experts:
        handles = [Patch(color=colour, label=str(n)) for n, colour in enumerate(expert_colours(experts)[:-1])]
        figure.legend(
            handles=handles,
            title="expert",
            loc="outside lower center",
            ncols=min(experts, 16),
            fontsize=7,
            title_fontsize=8,
            handlelength=1,
            handleheight=1,
            columnspacing=0.8,
            frameon=False,
        )
