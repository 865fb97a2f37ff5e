"""Figures of an evaluation: precision against recall, and errors by kind."""

from pathlib import Path

import numpy as np

from vismoe.files import counted
from vismoe.files.figures import new_figure, plain_text, save_figure

from .drawing import class_colour, short_name
from .evaluation import RECALLS, BoxEvaluation
from .mistakes import KINDS, Mistakes

CURVES = 10
"""Largest number of classes with a colour."""
BARS = 20
"""Largest number of classes with a bar."""
KIND_COLOURS = ("#7b3fb5", "#3a78d0", "#2aa5a0", "#e3a92b", "#8a8a8a", "#d8344a")
"""The colour of each kind of error."""


def draw_precision_recall(evaluation: BoxEvaluation, mistakes: Mistakes, path: Path) -> bool:
    """Draws precision against recall at IoU 0.5 by class, with a dot at the threshold with the largest F1. Of more than
    10 classes, those with the lowest AP50 have a colour. Returns False, without a file, if there are no objects.

    **Arguments:**

    - `evaluation`, `mistakes`: the evaluation and its errors.
    - `path`: the image file to write.
    """
    present = [number for number, each in enumerate(evaluation.per_class) if each.objects]
    if not present:
        return False
    worst_first = sorted(present, key=lambda number: evaluation.per_class[number].ap50)
    coloured = sorted(worst_first[:CURVES], key=lambda number: -evaluation.per_class[number].ap50)
    figure = new_figure(6.4, 4.6)
    axes, recall = figure.subplots(), np.linspace(0, 1, RECALLS)
    for number in worst_first[CURVES:]:
        axes.plot(recall, evaluation.per_class[number].curve.numpy(), color="#cccccc", linewidth=0.7)
    for number in coloured:
        each, point = evaluation.per_class[number], mistakes.points[number]
        title = f"{plain_text(short_name(each.name))} {each.ap50:.3f}"
        axes.plot(recall, each.curve.numpy(), color=class_colour(number), linewidth=1.6, label=title)
        axes.plot(point.recall, point.precision, "o", color=class_colour(number), markersize=5)
    if len(present) > 1:
        mean = np.mean([evaluation.per_class[number].curve.numpy() for number in present], axis=0)
        label = f"mean of {len(present)} classes {evaluation.metrics['map50']:.3f}"
        axes.plot(recall, mean, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label=label)
    if more := len(present) - len(coloured):
        axes.plot([], [], color="#cccccc", label=counted(more, "more class", "more classes"))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Precision and recall at IoU 0.5, {counted(len(evaluation.truth), 'image')}", fontsize=10)
    figure.legend(
        title="AP50 (dot: largest F1)", loc="outside right upper", frameon=False, fontsize=8, title_fontsize=8
    )
    save_figure(figure, path, dpi=130)
    return True


def draw_errors(evaluation: BoxEvaluation, mistakes: Mistakes, path: Path) -> bool:
    """Draws the number of errors of each kind by class: the 20 classes with the most errors. Returns False, without a
    file, if there are no errors.

    **Arguments:**

    - `evaluation`, `mistakes`: the evaluation and its errors.
    - `path`: the image file to write.
    """
    from matplotlib.ticker import MaxNLocator

    totals = mistakes.counts.sum(1)
    order = totals.argsort(descending=True, stable=True).tolist()
    numbers = [number for number in order if totals[number]][:BARS]
    if not numbers:
        return False
    longest = max(len(short_name(evaluation.classes[number])) for number in numbers)
    figure = new_figure(6.2 + 0.07 * longest, 1.5 + 0.36 * len(numbers))
    axes, left = figure.subplots(), np.zeros(len(numbers))
    counts = mistakes.counts[numbers].numpy()
    widest = int(counts.sum(1).max())
    for kind, (name, colour) in enumerate(zip(KINDS, KIND_COLOURS, strict=True)):
        values = counts[:, kind]
        meaning = " (no box there)" if name == "missed" else ""
        title = f"{name}{meaning} {int(mistakes.counts[:, kind].sum()):,}"
        axes.barh(range(len(numbers)), values, left=left, color=colour, height=0.7, label=title, edgecolor="white")
        for place, value in enumerate(values.tolist()):
            if value > 0.03 * widest * len(f"{value}"):
                axes.text(left[place] + value / 2, place, f"{value}", ha="center", va="center", color="white", size=8)
        left = left + values
    axes.set_yticks(range(len(numbers)), [_bar_title(evaluation, mistakes, number) for number in numbers], size=9)
    axes.set_ylim(len(numbers) - 0.4, -0.6)
    more = int((totals > 0).sum()) - len(numbers)
    axes.set_xlabel(f"errors (not shown: {counted(more, 'more class', 'more classes')})" if more else "errors")
    axes.set_xlim(0, widest * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Errors at the threshold of each class with the largest F1", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path, dpi=130)
    return True


def _bar_title(evaluation: BoxEvaluation, mistakes: Mistakes, number: int) -> str:
    name, objects = plain_text(short_name(evaluation.classes[number])), evaluation.per_class[number].objects
    return f"{name}\n{int(mistakes.right[number])} of {objects} found"
