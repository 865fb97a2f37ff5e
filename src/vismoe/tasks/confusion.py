"""Draws confusion matrices."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vismoe.files import counted
from vismoe.files.figures import new_figure, plain_text, save_figure

LONGEST = 30
"""Largest number of characters of a class name in the figure."""


def draw_confusion(labels: Tensor, predictions: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix. Each cell has the number of images; its colour is the fraction of the images of the
    true class, so that frequent and rare classes can be compared.

    **Arguments:**

    - `labels`: (N,), true class numbers.
    - `predictions`: (N,), predicted class numbers.
    - `classes`: names of the classes.
    - `path`: the image file to write.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # its import takes a second

    matrix = multiclass_confusion_matrix(predictions, labels, num_classes=len(classes)).numpy()
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    names = [plain_text(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…") for name in classes]
    numbered = len(classes) <= 30
    size = min(2.2 + 0.4 * len(classes), 16)
    margin = 0.08 * max(map(len, names)) if numbered else 0.5
    figure = new_figure(size + margin + 0.8, size + margin)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if numbered:
        for row, column in zip(*matrix.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(classes)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    figure.suptitle(counted(int(matrix.sum()), "image"), fontsize=10)
    save_figure(figure, path, dpi=110)
