"""The study's main figure: loss against MACs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from .figures import FAMILIAR, UNFAMILIAR, Decisive, Row, Views, trunk
from .measures import over_seeds

DENSE, SPARSE, FIXED = "#4c5b6b", "#d1495b", "#edae49"


def draw(found: Sequence[Decisive], path: Path) -> None:
    """A panel for each width and kind of views: the dense ladder, the sparse trunk, fixed routing, with 95 % intervals
    over seeds."""
    kinds = (UNFAMILIAR, FAMILIAR)
    figure = Figure(figsize=(4.6 * len(found), 3.6 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(found), squeeze=False)
    for row, views in zip(axes, kinds, strict=True):
        for axis, decisive in zip(row, found, strict=True):
            _panel(axis, decisive, views)
        row[0].set_ylabel("loss (nats)")
    for axis in axes[-1]:
        axis.set_xlabel("MACs of the trunk, per image")
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def _panel(axis: Axes, found: Decisive, views: Views) -> None:
    _points(axis, views, found.rungs, DENSE, "dense at 1×, 2×, 4×", "o-")
    _points(axis, views, [found.hashed], FIXED, "32 experts, fixed routing", "D")
    _points(axis, views, [found.sparse], SPARSE, "32 experts, learned routing", "s")
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = [trunk(rung[0]) for rung in found.rungs]
    axis.set_xticks(ticks, [f"{tick / 1e6:.0f} M" for tick in ticks])
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_locator(NullLocator())
    axis.set_title(f"width {found.width}, {views.name} views")
    axis.grid(alpha=0.25)


def _points(axis: Axes, views: Views, networks: Sequence[Sequence[Row]], colour: str, label: str, style: str) -> None:
    losses = [over_seeds([views.loss(row) for row in rows]) for rows in networks]
    axis.errorbar(
        [trunk(rows[0]) for rows in networks],
        [loss.value for loss in losses],
        yerr=[[loss.value - loss.low for loss in losses], [loss.high - loss.value for loss in losses]],
        fmt=style,
        color=colour,
        label=label,
        capsize=3,
    )
