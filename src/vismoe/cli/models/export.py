"""vismoe export"""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.deploy import export_onnx

from ..shared.model import open_model
from ..shared.notes import note_step


def export(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    format: Literal["onnx"] = "onnx",
    dynamic_batch: bool = False,
    batch_size: int = 1,
    json: bool = False,
) -> None:
    """Write a classifier or a detector to an ONNX file. Its outputs are compared with the model's before the file is
    written.

    Example: vismoe export runs/demo digits.onnx --dynamic-batch

    Args:
        model: Run folder, model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        dst: File to write, with the suffix .onnx; an existing file is not overwritten.
        format: Format: onnx (standard ONNX operators; each expert computes only its own tokens).
        dynamic_batch: Accept batches of any size; without it, the size is fixed by --batch-size.
        batch_size: The fixed batch size; not used with --dynamic-batch.
        json: Print the result as one JSON object.
    """
    exported = export_onnx(open_model(model, exported=True), dst, dynamic_batch, batch_size, log=note_step)
    print(json_format.dumps(asdict(exported) | {"path": str(exported.path)}) if json else exported.summary)


def main(arguments: list[str]) -> None:
    tyro.cli(export, args=arguments, prog="vismoe export")
