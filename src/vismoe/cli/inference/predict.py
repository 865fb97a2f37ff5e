"""vismoe predict"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vismoe.data import MAX_LEVEL, list_images
from vismoe.files import whole_folder, write_table
from vismoe.inference import Predictor
from vismoe.tasks import Prediction, Task
from vismoe.tasks.detection import BoxPrediction, Detection, coco_json, draw_predictions
from vismoe.weights import data_config

from ..shared.model import open_model, processes, refuse_both, to_device
from ..shared.notes import note, note_left_out, note_reads, refuse_existing

TOPK, MIN_SCORE = 5, 0.3
"""The defaults of a classifier and of a detector."""


def predict_images(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    images: Annotated[
        list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="(required)")
    ],
    /,
    topk: int | None = None,
    min_score: float | None = None,
    format: Literal["table", "json", "csv", "coco"] = "table",
    draw: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    expert_parallel: int = 1,
    max_memory: str | None = None,
) -> None:
    """Classify images, or find the objects in them: print the most likely classes of each image with their
    probabilities, or the box, class and score of each object.

    Example: vismoe predict runs/demo runs/demo/samples --topk 3

    Args:
        model: Run folder, model folder, .onnx file, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        images: Image files or folders of images; damaged files in folders are listed and left out.
        topk: Classifiers only: number of classes to print per image. Default: 5.
        min_score: Detectors only: least score of an object, 0 to 1. Default: 0.3.
        format: Output format: table, json (one array), csv (with a header), or, of detectors, coco (one data set in
            COCO's JSON format).
        draw: Detectors only: new folder for the images with the boxes drawn on them.
        device: Device: auto, cpu, cuda or mps.
        batch_size: Images per forward pass; default: 64, for detectors 16.
        dtype: Data type of weights and products on a CPU; bfloat16 needs AVX512-BF16 or AMX.
        expert_parallel: Number of processes, started by torchrun, that share the experts of each layer.
        max_memory: Most memory of this process, such as 8GiB, for a run or model folder that is larger: experts stay
            on disk and are read when they are needed.
    """
    if not images or Path("") in images:
        raise ValueError(f"no images given: name image files or folders: vismoe predict {model} IMAGE…")
    if draw is not None:
        refuse_existing(draw)
    refuse_both(expert_parallel, max_memory)
    with processes(expert_parallel) as mesh:
        network = to_device(open_model(model, None, True, max_memory, expert_parallel), device, mesh)
        options: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "mesh": mesh}
        predictor = Predictor(network, optimized=expert_parallel == 1, **options)
        _check_options(predictor.task, topk, min_score, format, draw)
        predictions = predictor.predict(images, TOPK if topk is None else topk, note_left_out)
        note_reads(network)
        if mesh.is_main:
            _write(predictor, predictions, images, min_score, format, draw)


def _write(
    predictor: Predictor,
    predictions: list[Prediction],
    images: Sequence[Path],
    min_score: float | None,
    format: Literal["table", "json", "csv", "coco"],
    draw: Path | None,
) -> None:
    """Prints the predictions, and draws them, as the options of `predict_images` say."""
    if not predictions:
        raise ValueError("none of the images can be read: name at least one readable image")
    if isinstance(predictor.task, Detection):
        found = _shown(predictions, MIN_SCORE if min_score is None else min_score)
        if draw is not None:
            with whole_folder(draw) as folder:
                max_level = data_config(predictor.model).get("max_level", MAX_LEVEL)
                draw_predictions(found, _files(images), folder, max_level)
            note(f"the images with boxes are in {draw}")
        if format == "coco":
            print(json.dumps(coco_json(found, predictor.task.classes), indent=2, ensure_ascii=False))
            return
        predictions = list(found)
    {"table": _table, "json": _json, "csv": _csv}[format](predictions)


def _check_options(task: Task, topk: int | None, min_score: float | None, format: str, draw: Path | None) -> None:
    """Raises ValueError for an option that the task does not have."""
    if isinstance(task, Detection):
        if topk is not None:
            raise ValueError(f"topk={topk} is for classifiers, and this model finds objects: use --min-score")
        if min_score is not None and not 0 <= min_score <= 1:
            raise ValueError(f"min_score={min_score}: accepted are 0 to 1")
        return
    given = {
        f"min_score={min_score}": min_score is not None,
        "format=coco": format == "coco",
        f"draw={draw}": draw is not None,
    }
    if wrong := [text for text, is_given in given.items() if is_given]:
        raise ValueError(f"{wrong[0]} is for models that find objects, and the task of this model is {task.name}")


def _shown(predictions: Sequence[Prediction], least: float) -> list[BoxPrediction]:
    """The predictions with only the objects of at least this score. If there are none, prints a note."""
    everything = [cast(BoxPrediction, prediction) for prediction in predictions]
    shown = [prediction.above(least) for prediction in everything]
    if not any(prediction.boxes for prediction in shown):
        scores = [box.score for prediction in everything for box in prediction.boxes]
        best = f"; the largest score is {max(scores):.3f}" if scores else ""
        note(f"no object has a score of at least {least:g} (--min-score){best}")
    return shown


def _files(images: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders."""
    return [path for each in images for path in (list_images(each)[0] if each.is_dir() else [each])]


def _table(predictions: list[Prediction]) -> None:
    rows = [row for prediction in predictions for row in prediction.table_rows()]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(escape, row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _json(predictions: list[Prediction]) -> None:
    print(json.dumps([prediction.to_json() for prediction in predictions], indent=2, ensure_ascii=False))


def _csv(predictions: list[Prediction]) -> None:
    write_table([row for prediction in predictions for row in prediction.rows()], sys.stdout)


def main(arguments: list[str]) -> None:
    tyro.cli(predict_images, args=arguments, prog="vismoe predict")
