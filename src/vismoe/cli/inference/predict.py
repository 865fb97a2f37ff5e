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

from vismoe.inference import Prediction, predict
from vismoe.parallel import resolve_device

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
    batch_size: int = 64,
) -> None:
    """Say what is on images: one record an image, its likeliest classes with their probabilities.

    Example: vismoe predict runs/demo runs/demo/samples --topk 3

    Args:
        model: A run folder, a model folder, an exported .onnx file, PRESET.TAG (published weights, downloaded), or a
            preset (with random weights).
        images: Image files, or folders of them, whose damaged files are named and left out.
        topk: How many classes to name.
        format: table, json (one array) or csv (with a header).
        device: auto, cpu, cuda or mps.
        batch_size: Images of one forward pass.
    """
    if not images or Path("") in images:
        raise ValueError(f"which images? name files or folders: vismoe predict {model} IMAGE…")
    network = open_model(model, exported=True).to(resolve_device(device))
    found = predict(network, images, topk, batch_size, note_left_out)
    if not found:
        raise ValueError("none of the images can be read")
    {"table": _table, "json": _json, "csv": _csv}[format](found)


def _table(found: list[Prediction]) -> None:
    table = Table("image", *(f"{rank}." for rank in range(1, len(found[0].classes) + 1)))
    for prediction in found:
        classes = (f"{name} {probability:.3f}" for name, probability in prediction.classes)
        table.add_row(*(escape(cell) for cell in (prediction.image, *classes)))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _json(found: list[Prediction]) -> None:
    records = [
        {"image": p.image, "classes": [{"name": name, "probability": value} for name, value in p.classes]}
        for p in found
    ]
    print(json.dumps(records, indent=2, ensure_ascii=False))


def _csv(found: list[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    ranks = range(1, len(found[0].classes) + 1)
    writer.writerow(["image", *(f"{what}{rank}" for rank in ranks for what in ("class", "probability"))])
    for prediction in found:
        writer.writerow([prediction.image, *(part for pair in prediction.classes for part in pair)])


def main(arguments: list[str]) -> None:
    tyro.cli(predict_images, args=arguments, prog="vismoe predict")
