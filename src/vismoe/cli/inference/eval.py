"""vismoe eval"""

import json as json_format
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from vismoe.adapt import split_of_files
from vismoe.data import NAMED, Data, check_column, check_images
from vismoe.files import counted
from vismoe.inference import evaluate
from vismoe.parallel import Mesh
from vismoe.tasks import ClassEvaluation, Evaluation, Group, Labels, by_group, group_lines, task_of
from vismoe.training import Run, without_nan

from ..shared.data import open_set, own_run
from ..shared.model import open_model, processes, refuse_both, to_device
from ..shared.notes import note, note_reads, note_set, note_step
from ..shared.values import check_at_least

CLASSES = 10
"""Number of classes that a note names."""
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "calibration_error": "expected calibration error",
    "map": "mAP",
    "map50": "mAP50",
    "map75": "mAP75",
    "map_small": "mAP small",
    "map_medium": "mAP medium",
    "map_large": "mAP large",
    "mar100": "mAR100",
}
"""Titles of metrics; of others, the name."""


def evaluate_model(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    data: str | None = None,
    group: Annotated[str | None, tyro.conf.arg(aliases=["--group-column"])] = None,
    max_unreadable: float = 0.1,
    json: bool = False,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int | None = None,
    workers: int = 0,
    expert_parallel: int = 1,
    max_memory: str | None = None,
) -> None:
    """Evaluate a model on a data set: print its metrics, also by class, and the load of the experts.

    Example: vismoe eval runs/demo --data digits

    Args:
        model: Run folder, model folder, .onnx file, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        data: digits, fashion-mnist, or a folder (or zip) of class folders, of images with a metadata.csv, or of images
            with boxes.
            The test split is evaluated; without one the validation split, without that all images.
            Classes are matched by name. A run folder stands for its data set, with the run's splits.
            Default: the run's own data set, with the run's splits.
        group: Column of metadata.csv: prints a classifier's accuracy for each value, worst first, with 95 %
            intervals. Values that are significantly below the rest are marked.
        max_unreadable: Largest fraction of unreadable files, 0 to 1; they are listed and left out.
        json: Print one JSON object; rates are between 0 and 1, null if they are undefined.
        device: Device: auto, cpu, cuda or mps.
        dtype: Data type of the computation; bfloat16 uses autocast.
        batch_size: Images per forward pass; default: 256, for detectors 16.
        workers: Number of data loading worker processes; 0: the main process.
        expert_parallel: Number of processes, started by torchrun, that share the experts of each layer.
        max_memory: Most memory of this process, such as 8GiB, for a run or model folder that is larger: experts stay
            on disk and are read when they are needed. Data loading workers are not counted.
    """
    check_at_least(1, batch_size=1 if batch_size is None else batch_size, expert_parallel=expert_parallel)
    check_at_least(0, workers=workers)
    refuse_both(expert_parallel, max_memory)
    with processes(expert_parallel) as mesh:
        figures, result, groups = _evaluate(
            model, data, group, max_unreadable, device, dtype, batch_size, workers, expert_parallel, max_memory, mesh
        )
        if json:
            print(json_format.dumps(without_nan(figures), allow_nan=False))
        else:
            lines = _report(figures, result)
            print(*lines, *(group_lines(group, groups) if group is not None else []), sep="\n")
        sys.stdout.flush()


def _evaluate(
    model: str,
    data: str | None,
    group: str | None,
    max_unreadable: float,
    device: str,
    dtype: Literal["float32", "bfloat16"],
    batch_size: int | None,
    workers: int,
    expert_parallel: int,
    max_memory: str | None,
    mesh: Mesh,
) -> tuple[dict[str, Any], Evaluation, list[Group]]:
    """Evaluates as the options of `evaluate_model` say, with the processes of a mesh. Returns what is printed: the
    figures by name, the evaluation, and the groups."""
    run = own_run(model, data)
    data = data or (run.recipe.data if run is not None else "")
    network = open_model(model, 10 if data in NAMED else None, True, max_memory, expert_parallel)
    network = to_device(network, device, mesh)
    task = task_of(network)
    opened = task.align_classes(open_set(model, data, task=task))
    is_test = opened.val_is_test or (run is not None and run.test_files is not None)
    split = "test" if is_test else "held-out" if opened.train else "all"
    if run is not None:
        opened = replace(opened, train=None)
    if group is not None:
        if not isinstance(task, Labels):
            raise ValueError(f"group={group!r}: expected a classifier, got the task {task.name}: leave --group out")
        check_column(replace(opened, train=None), group, "group")
    opened = check_images(opened, max_unreadable, workers)
    note_set(opened, network, run is not None)
    if run is None:
        _note_classes(opened)
        _note_trained(model, opened, split)
    elif (own := Run.of(model)) is not None and own.path.resolve() != run.path.resolve():
        note(f"{model} is another run than {data}: if it was trained on these images, the metrics are too good")
    note_step(f"evaluating on {counted(len(opened.val), 'image')}")
    with torch.autocast(next(network.parameters()).device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        result = evaluate(network, opened.val, batch_size, workers, mesh)
    note_reads(network)
    figures: dict[str, Any] = {
        "model": model,
        "data": data,
        "part": split,
        "images": len(opened.val),
        "unreadable": len(opened.left_out),
        **result.metrics,
        **result.details(),
        "images_per_second": result.images_per_second,
        "load": result.load,
        "weakness": result.weakness,
    }
    groups: list[Group] = []
    if group is not None:
        assert isinstance(result, ClassEvaluation)
        groups = by_group(result, list(opened.val.columns[group]))
        figures["groups"] = [asdict(each) for each in groups]
    return figures, result, groups


def _note_classes(data: Data) -> None:
    """Prints a note about classes without images."""
    if missing := data.classes_without(data.val):
        more = f" and {counted(len(missing) - CLASSES, 'more class', 'more classes')}" if len(missing) > CLASSES else ""
        note(f"no images of {', '.join(missing[:CLASSES])}{more}: the metrics say nothing about them")


def _note_trained(model: str, data: Data, split: str) -> None:
    """Prints a note if images may be training images of a model: they have the names of training images of its run, or
    these are not known."""
    run, sides = Run.of(model), None
    if run is not None:
        try:
            sides = split_of_files(run)
        except (OSError, ValueError):  # its data set was moved or changed, or it is not finished
            split = "all"
    if sides is None:
        if split == "all" and Path(model).exists():
            unknown = f"the training images of {model} are not known"
            note(f"{unknown}: if they are among these images, the metrics are too good")
        return
    trained = sum(sides.get(file) in ("train", "validation") for file in data.val.files)
    if trained:
        note(
            f"{trained:,} of these {len(data.val):,} images have names of training images of {model}: if they are the "
            "same images, the metrics are too good"
        )


def _report(figures: dict[str, Any], result: Evaluation) -> list[str]:
    """The metrics as lines of text."""
    # With five classes or fewer, the top-5 accuracy is 1. The calibration error comes last.
    is_trivial = isinstance(result, ClassEvaluation) and len(result.classes) < 6
    shown = [name for name in result.metrics if not (name == "top5" and is_trivial)]
    names = sorted(shown, key=lambda name: name == "calibration_error")
    metrics = [f"{TITLES.get(name, name.replace('_', ' '))} {_rounded(result.metrics[name])}" for name in names]
    left_out = f", {figures['unreadable']} more left out" if figures["unreadable"] else ""
    split_title = {"test": " of the test split", "held-out": " of the validation split", "all": ""}[figures["part"]]
    rate = figures["images_per_second"]
    speed = f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s"
    lines = [
        f"{', '.join(metrics)} on {counted(figures['images'], 'image')}{split_title}{left_out}, {speed}",
        *result.lines(),
    ]
    if result.weakness is not None:
        lines.insert(1, f"warning: {result.weakness}")
    for name, load in figures["load"].items():
        uneven = max(load) * len(load) / max(1, sum(load))
        lines.append(f"{name}: load of the experts {load}, largest ÷ mean {uneven:.2f} (1 is even)")
    return lines


def _rounded(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"


def main(arguments: list[str]) -> None:
    tyro.cli(evaluate_model, args=arguments, prog="vismoe eval")
