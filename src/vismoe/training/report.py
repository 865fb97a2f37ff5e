"""Writes the summary and the figures of a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vismoe.data import Data
from vismoe.explain import routing_images
from vismoe.files.figures import new_figure, save_figure
from vismoe.inference import Predictor
from vismoe.tasks import Evaluation, Task

from .run import SUMMARY, Run
from .state import State


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
    draw_curves(run.metrics, task, run.path / "curves.png")
    task.report(evaluation, data.val, run.path)
    predictor = Predictor(state.evaluated, task, batch_size=task.largest_batch)
    routing_images(predictor, data.val, data.classes, run.path)


def draw_curves(metrics: Sequence[dict[str, Any]], task: Task, path: Path) -> None:
    """Draws the loss, the primary metric and the experts' load imbalance over the steps. A task without a loss in
    evaluation has the training's alone."""
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
        loss.plot(steps, [line["val_loss"] for line in validation], "o-", label="validation")
    highest = max([line["loss"] for line in train] + [line["val_loss"] for line in validation], default=1)
    loss.set(xlabel="step", ylabel="loss", ylim=(0, 1.05 * highest))
    if task.metric_title == task.training_metric:  # otherwise the two curves show different quantities
        steps, scores = [line["step"] for line in train], [line[task.training_metric] for line in train]
        metric.plot(steps, scores, marker=marker, label="training")
    metric.plot([line["step"] for line in scored], [line[task.metric] for line in scored], "o-", label="validation")
    metric.set(xlabel="step", ylabel=task.metric_title, ylim=(None, 1.005))
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
