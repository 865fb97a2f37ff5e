"""The report of a fine-tuned network on the test split: metrics, tables and figures."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vismoe.data import MAX_LEVEL, ImageSet, eight_bits, flatten_alpha
from vismoe.files import counted, save_table
from vismoe.files.figures import new_figure, plain_text, save_figure
from vismoe.inference import evaluate
from vismoe.parallel import resolve_device
from vismoe.tasks import ClassEvaluation, Labels, by_group, classification_of, wilson_interval
from vismoe.training import Run
from vismoe.training.run import MODEL
from vismoe.weights import data_config

from ..splits import Splits
from .calibrate import ENOUGH, divide_logits, fit_temperature
from .card import write_card

MISTAKES, BINS = 24, 10


def write_outcome(
    run: Run, model: nn.Module, splits: Splits, probe: dict[str, float] | None, origin: str, workers: int
) -> dict[str, Any]:
    """Calibrates the network on the validation split, evaluates it on the test split, and writes model, tables, figures
    and model card into the run folder.

    **Arguments:**

    - `run`: the run folder.
    - `model`: the network; its head is changed.
    - `splits`: the splits of the set.
    - `probe`: scores of the linear classifier; None: there is none.
    - `origin`: a text for the model card about where the network comes from.
    - `workers`: number of processes that load images; 0: the current process.

    **Returns:** the report. Among its entries are

    - `test`, `validation`: metrics, see `vismoe.tasks.Evaluation`; `validation` is None without a validation split.
    - `interval`: 95 % interval of the fraction of right answers on the test split.
    - `classes`: see `class_table`.
    - `groups`: see `vismoe.tasks.by_group`; empty without a `group_column`.
    - `weakness`: why the network is useless; None if it is not.
    - `temperature`: what the logits are divided by; `temperature_note`: why none is fitted, None if one is.
    - `probe`, `data` (see `vismoe.data.summarise`).
    """
    data, device = splits.test, resolve_device(run.recipe.device)
    task = classification_of(data)
    model.to(device)
    uncalibrated = _evaluated(model, data.val, task, workers)
    validation = _evaluated(model, splits.fitting.val, task, workers)
    temperature, temperature_note = _calibrate(model, validation, splits.validated)
    evaluation = _evaluated(model, data.val, task, workers)
    task.save(model.cpu(), run.path / MODEL)
    rows = class_table(evaluation, data.classes)
    save_table(rows, run.path / "classes.csv", digits=4)
    draw_calibration(uncalibrated, evaluation.scores, run.path / "calibration.png")
    images = data.val.in_eight_bits(data_config(model).get("max_level", MAX_LEVEL))
    draw_mistakes(evaluation, images, data.classes, run.path / "mistakes.png")
    task.report(evaluation, images, run.path)
    right = int(evaluation.right.sum())
    report = {
        "score": splits.score,
        "test": evaluation.metrics,
        "right": right,
        "mean_recall": mean_recall(rows),
        "interval": wilson_interval(right, len(data.val)),
        "weakness": evaluation.weakness,
        "group_column": data.group_column,
        "groups": [] if data.group_column is None else _group_table(evaluation, data.val.columns[data.group_column]),
        "calibration_error_as_trained": uncalibrated.metrics["calibration_error"],
        "validation": validation.metrics if splits.validated else None,
        "probe": probe,
        "temperature": temperature,
        "temperature_note": temperature_note,
        "images": {
            "train": len(splits.fitting.train_and_val[0]),
            "validation": len(splits.fitting.val) if splits.validated else 0,
            "test": len(data.val),
        },
        "images_per_second": evaluation.images_per_second,
        "load": evaluation.load,
        "classes": rows,
        "origin": origin,
        "data": splits.summary,
    }
    write_card(run.path / MODEL / "README.md", report, splits.summary)
    return report


def _calibrate(model: nn.Module, validation: ClassEvaluation, validated: bool) -> tuple[float, str | None]:
    """Divides the logits of a network by a temperature. Returns the temperature, and why none is fitted (None if one
    is)."""
    images = len(validation.labels)
    are = "is" if images == 1 else "are"
    if not validated:
        reason = "there is no validation split"
    elif images < ENOUGH:
        reason = f"there {are} {counted(images, 'validation image')}, and at least {ENOUGH} are needed"
    elif not divide_logits(model, temperature := fit_temperature(validation.scores, validation.labels)):
        reason = "the classifier is not one linear layer"
    else:
        return temperature, None
    return 1.0, f"no temperature is fitted, so probabilities may be too high or too low: {reason}"


def _group_table(evaluation: ClassEvaluation, groups: Sequence[str]) -> list[dict[str, Any]]:
    return [asdict(group) for group in by_group(evaluation, list(groups))]


def _evaluated(model: nn.Module, images: ImageSet, task: Labels, workers: int) -> ClassEvaluation:
    evaluation = evaluate(model, images, workers=workers, task=task)
    assert isinstance(evaluation, ClassEvaluation)
    return evaluation


def class_table(evaluation: ClassEvaluation, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class: number of images, recall with its 95 % interval (Wilson), precision, and, if images may have
    several classes, average precision."""
    labels, scores = evaluation.labels, evaluation.scores
    several = labels.ndim == 2
    rows = []
    for number, name in enumerate(classes):
        true = labels[:, number].bool() if several else labels == number
        predicted = scores[:, number] > 0 if several else scores.argmax(1) == number
        images, hits = int(true.sum()), int((true & predicted).sum())
        low, high = wilson_interval(hits, images) if images else (math.nan, math.nan)
        row: dict[str, Any] = {"class": name, "images": images}
        row |= {"recall": hits / images if images else math.nan, "low": low, "high": high}
        row["precision"] = hits / int(predicted.sum()) if int(predicted.sum()) else math.nan
        if several:
            row["average_precision"] = evaluation.per_class[number]
        rows.append(row)
    return rows


def mean_recall(rows: Sequence[dict[str, Any]]) -> float:
    """Balanced accuracy: the mean recall of the classes that have test images."""
    recalls = [row["recall"] for row in rows if row["images"]]
    return float(np.mean(recalls))


def draw_mistakes(evaluation: ClassEvaluation, images: ImageSet, classes: Sequence[str], path: Path) -> bool:
    """Plots the wrong answers with the highest confidence, each with its true class. Returns False, without a file, if
    there are none."""
    wrong = _wrong_answers(evaluation)[:MISTAKES]
    if not wrong:
        return False
    columns = min(6, len(wrong))
    rows = math.ceil(len(wrong) / columns)
    figure = new_figure(1.9 * columns, 2.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle("wrong with the most confidence: true class → answer", fontsize=10)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")  # captions at one height, whatever the shape of the images
    for axes, (number, true, predicted, confidence) in zip(grid.flat, wrong, strict=False):
        axes.imshow(_thumbnail(images, number))
        caption = f"{_short_names(classes, true)}\n→ {_short_names(classes, predicted)} {confidence:.0%}"
        axes.set_title(caption, fontsize=7)
    save_figure(figure, path, dpi=110)
    return True


def _wrong_answers(evaluation: ClassEvaluation) -> list[tuple[int, list[int], list[int], float]]:
    """Image number, true classes, predicted classes and confidence of each wrong answer, highest confidence first."""
    labels, scores = evaluation.labels, evaluation.scores
    if labels.ndim == 2:
        probabilities = scores.sigmoid()
        errors = (probabilities - labels.float()).abs()
        order = errors.amax(1).argsort(descending=True).tolist()
        return [
            (n, labels[n].nonzero()[:, 0].tolist(), (scores[n] > 0).nonzero()[:, 0].tolist(), float(errors[n].max()))
            for n in order
            if not bool(evaluation.right[n])
        ]
    confidence, predicted = scores.softmax(1).max(1)
    order = confidence.argsort(descending=True).tolist()
    return [
        (n, [int(labels[n])], [int(predicted[n])], float(confidence[n])) for n in order if not bool(evaluation.right[n])
    ]


def _short_names(classes: Sequence[str], numbers: Sequence[int]) -> str:
    name = ", ".join(classes[number] for number in numbers) or "nothing"
    return plain_text(name if len(name) <= 22 else f"{name[:21]}…")


def _thumbnail(images: ImageSet, number: int) -> np.ndarray:
    image = flatten_alpha(eight_bits(images.image(number))).convert("RGB")
    image.thumbnail((160, 160))
    return np.asarray(image)


def draw_calibration(before: ClassEvaluation, scores: Tensor, path: Path) -> None:
    """Plots accuracy against confidence, and the number of answers in each bin of confidence.

    **Arguments:**

    - `before`: the evaluation without temperature.
    - `scores`: the logits divided by the temperature.
    - `path`: the file.
    """
    figure = new_figure(4.4, 5)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    edges = np.linspace(0, 1, BINS + 1)
    curves = {"as trained": before.scores}
    if not torch.equal(before.scores, scores):  # with few images there is no temperature
        curves["with temperature"] = scores
    for title, values in curves.items():
        confidence, hits = _confidence(values, before)
        bins = np.clip(np.digitize(confidence, edges) - 1, 0, BINS - 1)
        filled = [number for number in range(BINS) if (bins == number).any()]
        x = [confidence[bins == number].mean() for number in filled]
        axes.plot(x, [hits[bins == number].mean() for number in filled], "o-", label=title, markersize=3)
        counts.hist(confidence, edges, histtype="stepfilled", alpha=0.5)
    answers = "answers" if before.labels.ndim == 1 else "pairs of image and class"
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=counted(len(before.labels), "test image"))
    counts.set(xlabel="confidence", ylabel=f"{answers} per bin")
    counts.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    save_figure(figure, path, dpi=110)


def _confidence(scores: Tensor, evaluation: ClassEvaluation) -> tuple[np.ndarray, np.ndarray]:
    if evaluation.labels.ndim == 2:
        probabilities = scores.sigmoid()
        return probabilities.flatten().numpy(), evaluation.labels.flatten().float().numpy()
    return scores.softmax(1).amax(1).numpy(), evaluation.right.float().numpy()
