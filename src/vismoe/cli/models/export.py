"""vismoe export"""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.deploy import OnnxExport, export_onnx

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
    print(json_format.dumps(asdict(exported) | {"path": str(exported.path)}) if json else _report(exported))


def _report(exported: OnnxExport) -> str:
    compared = f"{exported.images} random images"
    if exported.objects is None:
        result = (
            f"in ONNX Runtime its logits differ from the model's by at most {exported.difference:.1e} on {compared}"
        )
    elif exported.objects:
        result = (
            f"in ONNX Runtime it finds the model's {exported.objects:,} objects in {compared}; scores differ by at "
            f"most {exported.difference:.1e}, boxes by {exported.box_difference:.1e} pixels"
        )
    else:
        result = f"in ONNX Runtime it finds nothing in {compared}, as the model: boxes and scores were not compared"
    ties = "; ".join(f"{number}: {decision}" for decision, number in exported.close_calls.items())
    left_out = f" ({exported.left_out} more left out, a decision was too close to call: {ties})" if ties else ""
    return f"{exported.path}: {exported.size / 1e6:,.1f} MB; {result}{left_out}"


def main(arguments: list[str]) -> None:
    tyro.cli(export, args=arguments, prog="vismoe export")
