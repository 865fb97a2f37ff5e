"""The parts of a report about a set of images, and about two networks."""

from collections.abc import Sequence
from typing import Any

from vismoe.files import counted

from ..analysis import SHUFFLES, SetAnalysis
from ..comparison import Comparison
from ..parts import WithoutExpert
from .page import Page
from .set_figures import (
    class_figure,
    gallery_figure,
    information_figure,
    load_figure,
    position_figure,
    together_figure,
    without_figure,
)


def add_set(page: Page, analysis: SetAnalysis, name: str) -> None:
    """Adds what the experts do on a set of images. `name`: the name of the set."""
    page.heading(f"The experts on {name}")
    classes = counted(len(analysis.classes) - analysis.by_patch, "class", "classes")
    page.text(f"{counted(analysis.images, 'image')}, {classes}{' and the background' * analysis.by_patch}.")
    if analysis.by_patch and analysis.layers:
        page.text(
            "The class of a patch is that of the labelled box that contains its centre (of several, the smallest), "
            "otherwise background."
        )
    if not analysis.layers:
        page.text("This network has no sparse layers.")
        return
    dead = [f"{layer.name}: {', '.join(map(str, layer.dead))}" for layer in analysis.layers if layer.dead]
    page.text(f"Dead experts, which no token of these images chose: {'; '.join(dead) or 'none'}.")
    page.figure(load_figure(analysis), "load", "Load: the share of the choices that each expert got. Dashed: even.")
    rows: list[dict[str, Any]] = [
        {"layer": layer.name, "expert": expert, "choices": count, "share": count / max(int(layer.load.sum()), 1)}
        | {"dead": not count}
        for layer in analysis.layers
        for expert, count in enumerate(layer.load.tolist())
    ]
    page.save_table(rows, "load")
    _add_information(page, analysis)
    if analysis.layers[0].by_class is not None:
        what = "patches" if analysis.by_patch else "tokens"
        page.figure(class_figure(analysis), "classes", f"The share of the {what} of each class that each expert got.")
        page.save_table(_classes(analysis), "classes")
    for number, layer in enumerate(analysis.layers, start=1):
        caption = f"Where in the image the patches of each expert of {layer.name} lie. White: as often as elsewhere."
        page.figure(position_figure(layer), f"positions-{number}", caption)
    page.save_table(_positions(analysis), "positions")
    for number, layer in enumerate(analysis.layers, start=1):
        caption = (
            f"The patches that each expert of {layer.name} takes most surely (largest gates, at most one patch "
            "per image), in a frame, with the patches around them."
        )
        page.figure(gallery_figure(layer), f"gallery-{number}", caption)
    if rows := _pairs(analysis):
        caption = (
            "Experts that go together: of the patches of an expert, the share that each expert of the next sparse "
        )
        page.figure(together_figure(analysis), "together", f"{caption}layer gets.")
        page.save_table(rows, "together")


def add_without(page: Page, total: float, rows: Sequence[WithoutExpert], metric: str, images: int) -> None:
    """Adds the scores without each expert. `total`: the score of the whole network; `images`: their number."""
    page.heading("Without each expert")
    page.text(
        f"{metric} on {counted(images, 'image')}: {total:.4f}. The outputs of one expert after the other are 0; its "
        "tokens go to no other expert."
    )
    if not rows:
        return
    if not (changes_score := any(row.change for row in rows)):
        page.text(f"No expert changes {metric} on these images when it is left out alone.")
    has_loss = all(row.loss_change is not None for row in rows)
    if changes_score or has_loss:
        shown = [metric] * changes_score + ["the loss (up: worse)"] * has_loss
        figure = without_figure(rows, metric if changes_score else None, has_loss)
        page.figure(figure, "without-experts", f"Change of {' and of '.join(shown)} without each expert.")
    entries = [
        {"layer": row.layer, "expert": row.expert, metric: row.score, "change": row.change}
        | ({"change of loss": row.loss_change} if has_loss else {})
        for row in sorted(rows, key=lambda row: (row.change, -(row.loss_change or 0)))
    ]
    if changes_score or has_loss:
        page.table(entries, "without-experts", "The score without each expert, largest fall first")
    else:
        page.save_table(entries, "without-experts")


def add_comparison(page: Page, comparison: Comparison) -> None:
    """Adds two networks side by side."""
    page.heading(" and ".join(side.name for side in comparison.sides))
    rows = [
        {"model": side.name, "parameters": side.parameters, "active parameters": side.active_parameters}
        | {"MACs": side.macs, "milliseconds per image": side.milliseconds}
        for side in comparison.sides
    ]
    page.table(rows, "models", "Size and cost; time of one image at a time, measured in turn")
    differing = f"{len(comparison.differences):,} of {counted(comparison.images, 'image')}"
    page.text(f"Their answers differ for {differing}.")
    if comparison.differences:
        names = [side.name for side in comparison.sides]
        names = names if names[0] != names[1] else [f"{name} ({n})" for n, name in enumerate(names, start=1)]
        page.table(
            [
                {"number": each.number, "image": each.image, "class": each.label}
                | dict(zip(names, each.answers, strict=True))
                for each in comparison.differences
            ],
            "differences",
            "Images with different answers",
        )


def _add_information(page: Page, analysis: SetAnalysis) -> None:
    of_class, shuffled = "its image's class", "the labels of the images"
    if analysis.by_patch:
        of_class, shuffled = "its patch's class", "the classes of the patches"
    page.figure(
        information_figure(analysis),
        "information",
        f"Mutual information of a token's expert with {of_class}, and with its position: 0 bits if they are "
        f"independent. Shuffled: the mean of {SHUFFLES} controls in which {shuffled}, or the positions of the tokens, "
        "are shuffled; only what is above it is specialisation.",
    )
    rows = [
        {"layer": layer.name, "expert and": what, "bits": each.value, "shuffled": each.shuffled}
        | {"shuffled, highest": each.largest_shuffled}
        for layer in analysis.layers
        for what, each in (("class", layer.by_class_information), ("position", layer.by_position_information))
        if each is not None
    ]
    page.table(rows, "information", "Mutual information in bits")


def _classes(analysis: SetAnalysis) -> list[dict[str, Any]]:
    return [
        {"layer": layer.name, "expert": expert, "class": name, "tokens": count}
        for layer in analysis.layers
        if layer.by_class is not None
        for expert, counts in enumerate(layer.by_class.tolist())
        for name, count in zip(analysis.classes, counts, strict=True)
    ]


def _positions(analysis: SetAnalysis) -> list[dict[str, Any]]:
    return [
        {"layer": layer.name, "expert": expert, "row": row, "column": column, "tokens": count}
        for layer in analysis.layers
        for expert, counts in enumerate(layer.by_position.tolist())
        for row, values in enumerate(counts)
        for column, count in enumerate(values)
    ]


def _pairs(analysis: SetAnalysis) -> list[dict[str, Any]]:
    return [
        {"layer": layer.name, "expert": expert, "next layer": following.name, "next expert": other, "patches": count}
        for layer, following in zip(analysis.layers, analysis.layers[1:], strict=False)
        if layer.together is not None
        for expert, counts in enumerate(layer.together.tolist())
        for other, count in enumerate(counts)
    ]
