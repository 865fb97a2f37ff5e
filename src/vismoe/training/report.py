"""What a finished training was like: summary and images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from vismoe.data import Data
from vismoe.explain import plain_text, routing_images, save_figure
from vismoe.inference.evaluation import Evaluation
from vismoe.weights import data_config

from .run import SUMMARY, Run
from .state import State


def write_report(run: Run, state: State, data: Data, evaluation: Evaluation) -> None:
    """Writes a run's summary and images into its folder."""
    run.write(
        SUMMARY,
        {
            **evaluation.logged,
            "held_out_images": len(data.val),
            "images_per_second": evaluation.images_per_second,
            "load": evaluation.load,
            "skipped_steps": state.skipped,
        },
    )
    draw_curves(run.metrics, run.path / "curves.png")
    if not data.multi_label:
        draw_confusion(evaluation.labels, evaluation.scores.argmax(1), data.classes, run.path / "confusion.png")
    routing_images(state.evaluated, data.val, data.classes, data_config(state.model), run.path)


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy over steps, and how uneven the experts were loaded."""
    train = [line for line in metrics if line.get("loss") is not None]
    held_out = [line for line in metrics if line.get("val_loss") is not None]
    score = next((name for name in ("top1", "mean_average_precision") if held_out and name in held_out[0]), "top1")
    layers = list(train[-1]["load"]) if train else []
    figure = Figure(figsize=(12 if layers else 8, 3.4), layout="constrained")
    loss, accuracy, *rest = figure.subplots(1, 3 if layers else 2)
    few = "." if len(train) < 20 else ""  # of one point no line shows
    loss.plot([line["step"] for line in train], [line["loss"] for line in train], marker=few, label="training")
    loss.plot([line["step"] for line in held_out], [line["val_loss"] for line in held_out], "o-", label="held out")
    highest = max([line["loss"] for line in train] + [line["val_loss"] for line in held_out], default=1)
    loss.set(xlabel="step", ylabel="loss", ylim=(0, 1.05 * highest))
    if score == "top1":  # of training batches mean average precision is not known
        steps, shares = [line["step"] for line in train], [line["accuracy"] for line in train]
        accuracy.plot(steps, shares, marker=few, label="training")
    accuracy.plot([line["step"] for line in held_out], [line[score] for line in held_out], "o-", label="held out")
    accuracy.set(xlabel="step", ylabel="accuracy" if score == "top1" else score.replace("_", " "), ylim=(None, 1.005))
    for axes in rest:
        for layer in layers:
            uneven = [max(line["load"][layer]) * len(line["load"][layer]) for line in train]
            axes.plot(
                [line["step"] for line in train],
                uneven,
                marker=few,
                label=layer.removesuffix(".mlp").replace("blocks.", "block "),
            )
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xlabel="step", ylabel="largest ÷ mean load of a batch")
    for axes in (loss, accuracy, *rest):
        axes.set_xlim(0, None)
        axes.legend(frameon=False)
    save_figure(figure, path, dpi=110)


def draw_confusion(labels: Tensor, predictions: Tensor, classes: Sequence[str], path: Path) -> None:
    """How often each class was taken for each other one."""
    matrix = multiclass_confusion_matrix(predictions, labels, num_classes=len(classes)).numpy()
    size = min(3.5 + 0.3 * len(classes), 16)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    # Errors are few: hits would leave them no colour of their own.
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
