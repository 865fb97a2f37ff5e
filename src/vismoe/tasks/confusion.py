"""The confusion matrix as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from vismoe.files.figures import plain_text, save_figure


def draw_confusion(labels: Tensor, predictions: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draws how often each class was predicted for each class."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # its import takes a second

    matrix = multiclass_confusion_matrix(predictions, labels, num_classes=len(classes)).numpy()
    size = min(3.5 + 0.3 * len(classes), 16)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    # Errors are few: beside the hits they would all have the same colour.
    errors = matrix.copy()
    for number in range(len(classes)):
        errors[number, number] = 0
    axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(1, errors.max()))
    if len(classes) <= 30:
        for row, column in ((row, column) for row in range(len(classes)) for column in range(len(classes))):
            if matrix[row, column]:
                dark = errors[row, column] > errors.max() / 2
                colour = "seagreen" if row == column else "white" if dark else "black"
                style: dict[str, Any] = {"color": colour, "fontweight": "bold" if row == column else "normal"}
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, **style)
        names = list(map(plain_text, classes))
        axes.set_xticks(range(len(classes)), names, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="predicted", ylabel="true", title="held-out images: errors in red, hits green")
    save_figure(figure, path, dpi=110)
