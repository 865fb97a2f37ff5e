"""Writes the summary and the figures of a finished run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vismoe.data import MAX_LEVEL, Data
from vismoe.explain import routing_images
from vismoe.files.figures import new_figure, save_figure
from vismoe.inference import Predictor
from vismoe.parallel import free_memory
from vismoe.parallel.gathering import is_distributed
from vismoe.tasks import Evaluation, Task
from vismoe.weights import data_config

from .run import MODEL, SUMMARY, Run
from .state import State

CPU, FREE = torch.device("cpu"), 0.5
"""Where a figure of routing is made from a whole network, and which fraction of the free memory it may need."""


def write_report(
    run: Run, state: State, task: Task, data: Data, evaluation: Evaluation, tested: Evaluation | None = None
) -> None:
    """Writes a run's summary and figures into its folder.

    **Arguments:**

    - `run`: the run.
    - `state`: its final state.
    - `task`: its task.
    - `data`: its data set.
    - `evaluation`: the evaluation on the validation split.
    - `tested`: the evaluation on the test split; default None: there is none.
    """
    test = {} if tested is None or data.test is None else {"test": {**tested.metrics, "images": len(data.test)}}
    run.write(
        SUMMARY,
        {
            **evaluation.logged,
            "held_out_images": len(data.val),
            "images_per_second": evaluation.images_per_second,
            "load": evaluation.load,
            "skipped_steps": state.skipped,
            **test,
            "weakness": evaluation.weakness,
        },
    )
    draw_curves(run.metrics, task, run.path / "curves.png", has_validation=data.has_validation)
    images = data.val.in_eight_bits(data_config(state.evaluated).get("max_level", MAX_LEVEL))
    task.report(evaluation, images, run.path)
    network = _whole(run, state.evaluated)
    if network is not None:
        routing_images(Predictor(network, task, batch_size=task.largest_batch), data.val, data.classes, run.path)


def _whole(run: Run, network: nn.Module) -> nn.Module | None:
    """A network that this process can run alone: of a distributed one that in the run's folder; None, with a note, if
    this is too large for the free memory."""
    if not is_distributed(network):
        return network
    if (needed := sum(file.stat().st_size for file in (run.path / MODEL).iterdir())) > FREE * free_memory(CPU):
        print(
            f"vismoe: note: no routing.png, because one process alone would need {needed / 2**30:.1f} GiB",
            file=sys.stderr,
        )
        return None
    return run.load_model()


def draw_curves(metrics: Sequence[dict[str, Any]], task: Task, path: Path, has_validation: bool = True) -> None:
    """Draws the loss, the primary metric and the experts' load imbalance over the steps. A task without a loss in
    evaluation has the training's alone.

    **Arguments:**

    - `metrics`: the lines of a run's metrics.
    - `task`: the task.
    - `path`: the image file to write.
    - `has_validation`: whether evaluations are on a validation split; default True. False: on the training split.
    """
    evaluated = "validation" if has_validation else "training split, evaluated"
    train = [line for line in metrics if line.get("loss") is not None]
    scored = [line for line in metrics if line.get(task.metric) is not None]
    validation = [line for line in scored if line.get("val_loss") is not None]
    layers = list(train[-1]["load"]) if train else []
    figure = new_figure(12 if layers else 8, 3.4)
    loss, metric, *rest = figure.subplots(1, 3 if layers else 2)
    marker = "." if len(train) < 20 else ""  # without markers a curve with one point is invisible
    loss.plot([line["step"] for line in train], [line["loss"] for line in train], marker=marker, label="training")
    if validation:
        steps = [line["step"] for line in validation]
        loss.plot(steps, [line["val_loss"] for line in validation], "o-", label=evaluated)
    highest = max([line["loss"] for line in train] + [line["val_loss"] for line in validation], default=1)
    loss.set(xlabel="step", ylabel="loss", ylim=(0, 1.05 * highest))
    if task.metric_title == task.training_metric:  # otherwise the two curves show different quantities
        steps, scores = [line["step"] for line in train], [line[task.training_metric] for line in train]
        metric.plot(steps, scores, marker=marker, label="training")
    scores = [line[task.metric] for line in scored]
    metric.plot([line["step"] for line in scored], scores, "o-", label=evaluated)
    metric.set(xlabel="step", ylabel=task.metric_title, ylim=_limits(task, scores))
    for axes in rest:
        for layer in layers:
            imbalance = [max(line["load"][layer]) * len(line["load"][layer]) for line in train]
            axes.plot(
                [line["step"] for line in train],
                imbalance,
                marker=marker,
                label=layer.removeprefix("trunk.").removesuffix(".mlp").replace("blocks.", "block "),
            )
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xlabel="step", ylabel="expert load, largest ÷ mean")
    for axes in (loss, metric, *rest):
        axes.set_xlim(0, None)
        axes.legend(frameon=False)
    save_figure(figure, path, dpi=110)


def _limits(task: Task, scores: Sequence[float]) -> tuple[float | None, float | None]:
    """The lower and the upper end of the axis of the primary metric; None: chosen by matplotlib."""
    if task.metric_title == task.training_metric:
        return None, 1.005  # accuracies are compared near 1
    lowest, highest = min(scores, default=0.0), max(scores, default=0.0)
    if lowest < 0:
        return None, None
    return 0.0, (min(1.005, 1.1 * highest) if highest <= 1 else 1.1 * highest) or 1.0
