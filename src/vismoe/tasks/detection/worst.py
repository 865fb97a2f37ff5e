"""The images with the most errors of a detector, with true and found boxes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from vismoe.data import ImageSet, eight_bits, flatten_alpha
from vismoe.files import counted
from vismoe.files.figures import new_figure, plain_text, save_figure

from .drawing import ERROR, Mark, class_colour, draw_boxes, short_name
from .evaluation import BoxEvaluation
from .mistakes import KINDS, ImageMistakes, Mistakes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN, COLUMNS = 9, 3
"""Number of images, and of columns."""
SIDE = 640
"""Pixels of the longer side of each image in the figure."""
CROWDED = 40
"""Of an image with more detections, only errors have labels."""
NAMED = 8
"""Largest number of classes in the legend."""


def draw_worst(evaluation: BoxEvaluation, mistakes: Mistakes, images: ImageSet, path: Path) -> bool:
    """Draws the images with the most errors, each with its true boxes and its detections above the thresholds. Returns
    False, without a file, if there are no errors.

    **Arguments:**

    - `evaluation`, `mistakes`: the evaluation and its errors.
    - `images`: the images that were evaluated.
    - `path`: the image file to write.
    """
    errors = torch.tensor([each.errors for each in mistakes.images])
    order = errors.argsort(descending=True, stable=True).tolist()
    numbers = [number for number in order if errors[number]][:SHOWN]
    if not numbers:
        return False
    columns = min(COLUMNS, len(numbers))
    rows = math.ceil(len(numbers) / columns)
    panels = [image_with_mistakes(evaluation, mistakes.images[number], images, number) for number in numbers]
    shape = sum(panel.height / panel.width for panel in panels) / len(panels)
    width = 5 if shape < 1.3 else 3.4
    figure = new_figure(width * columns, (width * shape + 0.35) * rows + 0.7)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, panel, number in zip(figure.axes, panels, numbers, strict=False):
        axes.imshow(panel, interpolation="bilinear")
        axes.set_title(_caption(mistakes.images[number], images, number), fontsize=8)
    figure.suptitle("Images with the most errors, at the threshold of each class with the largest F1", fontsize=11)
    _add_legend(figure, evaluation, numbers)
    save_figure(figure, path, dpi=120)
    return True


def image_with_mistakes(
    evaluation: BoxEvaluation, mistakes: ImageMistakes, images: ImageSet, number: int
) -> Image.Image:
    """An image of the set with its boxes: true boxes dashed, missed ones with a label; detections solid with their
    score, wrong ones in red with class, score and kind of error. If there are many, only errors have labels. Large
    images are shrunk and small ones enlarged, so that labels are readable on each."""
    image = flatten_alpha(eight_bits(images.image(number))).convert("RGB")
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    truth, detections = evaluation.truth[number], evaluation.detections[number]
    marks = []
    for place, (box, label) in enumerate(zip((truth.boxes * scale).tolist(), truth.labels.tolist(), strict=True)):
        missed, name = bool(mistakes.missed[place]), short_name(evaluation.classes[label])
        text = f"missed {name}" if missed else f"ignored {name}" if bool(truth.ignored[place]) else ""
        marks.append(Mark(box, class_colour(label), text, dashed=True, width=1.6 if missed else 1))
    is_crowded = int(mistakes.shown.sum()) > CROWDED
    rows = list(zip((detections.boxes * scale).tolist(), detections.labels.tolist(), strict=True))
    for place in range(len(detections) - 1, -1, -1):
        if not bool(mistakes.shown[place]):
            continue
        (box, label), kind, score = rows[place], int(mistakes.kinds[place]), float(detections.scores[place])
        if kind < 0:
            marks.append(Mark(box, class_colour(label), "" if is_crowded else f"{score:.2f}"))
        else:
            text = f"{short_name(evaluation.classes[label])} {score:.2f}: {KINDS[kind]}"
            marks.append(Mark(box, ERROR, text, width=1.6))
    return draw_boxes(resized, sorted(marks, key=lambda mark: (mark.colour == ERROR, bool(mark.label))))


def _caption(mistakes: ImageMistakes, images: ImageSet, number: int) -> str:
    name = images.files[number] if images.files else f"image {number}"
    name = plain_text(name if len(name) <= 44 else f"…{name[-43:]}")
    wrong, missed = int((mistakes.kinds >= 0).sum()), int(mistakes.missed.sum())
    return f"{name}\n{int(mistakes.right.sum())} right, {wrong} wrong, {counted(missed, 'object')} missed"


def _add_legend(figure: "Figure", evaluation: BoxEvaluation, numbers: Sequence[int]) -> None:
    """Adds what lines and colours mean. The classes are those on the images that are shown."""
    from matplotlib.lines import Line2D

    shown = torch.cat([part for number in numbers for part in _labels(evaluation, number)]).unique().tolist()
    lines = [
        Line2D([], [], color="#444444", linestyle=(0, (3, 2)), label="true box"),
        Line2D([], [], color="#444444", label="found, with its score"),
        Line2D([], [], color=ERROR, linewidth=2.2, label="error: class, score and kind"),
        *(
            Line2D(
                [], [], color=class_colour(label), linewidth=5, label=plain_text(short_name(evaluation.classes[label]))
            )
            for label in shown[:NAMED]
        ),
    ]
    if more := len(shown) - NAMED if len(shown) > NAMED else 0:
        lines.append(Line2D([], [], linestyle="", label=f"… and {counted(more, 'more class', 'more classes')}"))
    figure.legend(handles=lines, loc="outside lower center", ncols=6, frameon=False, fontsize=9)


def _labels(evaluation: BoxEvaluation, number: int) -> tuple[Tensor, Tensor]:
    """The classes of the true boxes of an image, and of its detections."""
    return evaluation.truth[number].labels, evaluation.detections[number].labels
