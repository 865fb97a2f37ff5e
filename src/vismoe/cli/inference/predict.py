"""vismoe predict"""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vismoe.inference import Predictor
from vismoe.parallel import resolve_device
from vismoe.tasks import Prediction

from ..shared.model import open_model
from ..shared.notes import note_left_out


def predict_images(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    images: Annotated[
        list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="(required)")
    ],
    /,
    topk: int = 5,
    format: Literal["table", "json", "csv"] = "table",
    device: str = "auto",
    batch_size: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Classify images: print the most likely classes of each image with their probabilities.

    Example: vismoe predict runs/demo runs/demo/samples --topk 3

    Args:
        model: Run folder, model folder, .onnx file, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        images: Image files or folders of images; damaged files in folders are listed and left out.
        topk: Number of classes to print per image.
        format: Output format: table, json (one array) or csv (with a header).
        device: Device: auto, cpu, cuda or mps.
        batch_size: Images per forward pass; default: 64, for detectors 16.
        dtype: Data type of weights and products on a CPU; bfloat16 needs AVX512-BF16 or AMX.
    """
    if not images or Path("") in images:
        raise ValueError(f"no images given: name image files or folders: vismoe predict {model} IMAGE…")
    network = open_model(model, exported=True)
    where = resolve_device(device)
    predictor = Predictor(network, device=where, batch_size=batch_size, optimized=True, dtype=dtype)
    predictions = predictor.predict(images, topk, note_left_out)
    if not predictions:
        raise ValueError("none of the images can be read: name at least one readable image")
    {"table": _table, "json": _json, "csv": _csv}[format](predictions)


def _table(predictions: list[Prediction]) -> None:
    rows = [prediction.cells() for prediction in predictions]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(escape, row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _json(predictions: list[Prediction]) -> None:
    print(json.dumps([prediction.to_json() for prediction in predictions], indent=2, ensure_ascii=False))


def _csv(predictions: list[Prediction]) -> None:
    rows = [prediction.columns() for prediction in predictions]
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def main(arguments: list[str]) -> None:
    tyro.cli(predict_images, args=arguments, prog="vismoe predict")
