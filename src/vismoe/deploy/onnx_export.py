"""Exports a network to an ONNX file. Both are compared before the file is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants
from torch import nn

from vismoe.detection import PROBLEM_TYPE, Detector
from vismoe.files import whole_file
from vismoe.moe import MoE, TopKRouter
from vismoe.moe.record import unwrap
from vismoe.vit import evaluating, using_backend
from vismoe.weights.exported.description import KEY, Description, describe_model
from vismoe.weights.exported.onnx_model import OnnxModel, open_session

from .agreement import TOLERANCE, Agreement, compare, named_calls
from .box_agreement import BOX_TOLERANCE, BoxAgreement, compare_boxes
from .graphs import LogitsOnly, ObjectsOnly
from .product import ONNX_OPERATORS

LARGEST = 2**31 - 2**20
"""Max size of the weights in bytes: a protobuf, and so an ONNX file, holds less than 2 GiB."""


@dataclass(frozen=True)
class OnnxExport:
    """A written file and its comparison with the network.

    - `path`: the file.
    - `size`: its size in bytes.
    - `difference`: max absolute difference between the file's logits, in ONNX Runtime, and the network's; of a
      detector, between the scores of matched objects.
    - `images`: number of random images compared.
    - `left_out`: number of random images left out, because a decision was too close to call: a choice between two
      experts, or what a detector finds.
    - `close_calls`: the same number by decision.
    - `box_difference`: of a detector, max absolute difference between matched boxes, in pixels of the input; of a box
      with a side of more than 100 pixels, for each 100 pixels of its longer side.
    - `objects`: of a detector, number of objects compared.
    """

    path: Path
    size: int
    difference: float
    images: int
    left_out: int
    close_calls: dict[str, int] = field(default_factory=dict)
    box_difference: float | None = None
    objects: int | None = None

    @property
    def summary(self) -> str:
        """The file and the comparison, as text."""
        images, start = f"{self.images} random images", f"{self.path}: {self.size / 1e6:,.1f} MB; in ONNX Runtime"
        if self.objects is None:
            result = f"its logits differ from the model's by at most {self.difference:.1e} on {images}"
        elif self.objects:
            result = (
                f"it finds the model's {self.objects:,} objects in {images}; scores differ by at most "
                f"{self.difference:.1e}, boxes by {self.box_difference:.1e} pixels"
            )
        else:
            result = f"it finds nothing in {images}, like the model: boxes and scores could not be compared"
        if self.left_out:
            result += f"; {self.left_out} more left out, too close to call: {named_calls(self.close_calls)}"
        return f"{start} {result}"


def export_onnx(
    model: nn.Module,
    path: str | Path,
    dynamic_batch: bool = False,
    batch_size: int = 1,
    preprocessing: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> OnnxExport:
    """Writes an ONNX file of standard operators, in which each expert computes only its own tokens.

    The input `pixels` is float32 (batch, C, H, W), normalised; the output `logits` is float32 (batch, classes). A
    detector has a second input `mask`, bool (batch, H, W), False where an image is padding; its outputs are `boxes`
    (batch, 100, 4), `scores` (batch, 100) and `labels` (batch, 100), see `vismoe.detection.PaddedDetections`. The
    metadata entry "vismoe" has the preprocessing and the class names. The model is not changed.

    **Arguments:**

    - `model`: a network from `create_model` (vismoe's or timm's), a loaded one, one of transformers' for image
      classification, or a detector; on the CPU, in float32.
    - `path`: file to write, with the suffix .onnx; it must not exist.
    - `dynamic_batch`: whether batches may have any size; default False: always `batch_size`.
    - `batch_size`: images per batch; default 1.
    - `preprocessing`: entries of timm's data configuration (mean, std, …) that replace the model's; default: none.
      transformers' models have none of their own.
    - `log`: called with a text when a step begins that may take a while; default: no call.

    **Returns:** an `OnnxExport`: the file, its size and its difference from the model.

    **Raises:** ValueError if the path exists or does not end in .onnx, if the model drops tokens or has operations that
    PyTorch cannot export, or if the file's logits in ONNX Runtime differ from the model's by more than 1e-4 (a
    detector's scores by more than 1e-4, or its boxes by more than 1e-3 pixels, or 1e-5 of a box's longer side). Nothing
    is written then.
    """
    path, model = Path(path), unwrap(model)
    if isinstance(model, OnnxModel):
        raise ValueError(f"{model.path} is an ONNX file already: export the model folder that it was made from")
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: the name of an ONNX file ends in .onnx")
    if path.exists():
        raise ValueError(f"{path} exists: choose another path, or remove it")
    if batch_size < 1 or (dynamic_batch and batch_size != 1):
        raise ValueError(f"batch_size={batch_size}: accepted are numbers ≥ 1, and only 1 with dynamic_batch")
    _check_exportable(model)
    description, batch = describe_model(model, preprocessing), None if dynamic_batch else batch_size
    network: LogitsOnly | ObjectsOnly = LogitsOnly(model)
    if isinstance(model, Detector):
        names = description.label_names or [str(number) for number in range(model.num_classes)]
        description, network = replace(description, label_names=names, problem_type=PROBLEM_TYPE), ObjectsOnly(model)
    input_size = tuple(description.preprocessing["input_size"])
    with evaluating(network):
        log("exporting the model")
        data = _serialise(network, description, batch)
        log("verifying the file in ONNX Runtime")
        if isinstance(network, ObjectsOnly):
            agreement: Agreement = compare_boxes(model, open_session(data), input_size, batch)
        else:
            agreement = compare(network, open_session(data), input_size, batch)
    _check_agreement(agreement)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        aside.write_bytes(data)
    return OnnxExport(path, len(data), **vars(agreement))


def _check_agreement(agreement: Agreement) -> None:
    if isinstance(agreement, BoxAgreement):
        if agreement.difference > TOLERANCE or agreement.box_difference > BOX_TOLERANCE:
            raise ValueError(
                f"the objects that the exported network finds differ from the model's on {agreement.images} random "
                f"images: scores by up to {agreement.difference:.2g}, accepted is {TOLERANCE:.0e}; boxes by up to "
                f"{agreement.box_difference:.2g} pixels, accepted is {BOX_TOLERANCE:.0e} (inf: another number of "
                "objects): nothing was written"
            )
    elif agreement.difference > TOLERANCE:
        raise ValueError(
            f"the exported network's logits differ from the model's by up to {agreement.difference:.2g} on "
            f"{agreement.images} random images, more than {TOLERANCE:.0e}: nothing was written"
        )


def _check_exportable(model: nn.Module) -> None:
    if getattr(model, "predictions", "mean") != "mean" and getattr(model, "ensemble_size", 0):
        raise ValueError(
            'this ensemble returns logits per member; accepted is one row per image: set predictions="mean"'
        )
    for name, layer in model.named_modules():
        if not isinstance(layer, MoE):
            continue
        router = layer.router
        if not isinstance(router, TopKRouter):
            raise ValueError(
                f"{name}: its router is {type(router).__name__}; only TopKRouter and its subclasses can be exported"
            )
        if router.eval_capacity_factor != "none" or layer.group_size != "none":
            raise ValueError(
                f"{name} drops tokens or routes them in groups at evaluation (eval_capacity_factor="
                f"{router.eval_capacity_factor!r}, group_size={layer.group_size!r}); accepted are dropless layers: "
                'build the model with eval_capacity_factor="none" and group_size="none"'
            )
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ValueError(
                f"the model is on {tensor.device.type} in {tensor.dtype}; accepted is float32 on the CPU: "
                "export model.cpu().float()"
            )
    size = sum(tensor.nbytes for tensor in tensors)
    if size > LARGEST:
        raise ValueError(
            f"{size / 2**30:.1f} GiB of weights: an ONNX file holds less than 2 GiB; export a smaller model"
        )


def _serialise(network: LogitsOnly | ObjectsOnly, description: Description, batch_size: int | None) -> bytes:
    # The example's dynamic dimension must not be 1: torch would treat 1 as the only value.
    example = network.example(2 if batch_size is None else batch_size, description.preprocessing["input_size"])
    dim = torch.export.Dim("batch", min=1)
    shapes = ({0: dim},) * len(example) if batch_size is None else None
    try:
        with torch.no_grad(), using_backend(network, network.product):
            program = torch.export.export(network, example, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=network.inputs,
                output_names=network.outputs,
                custom_translation_table=ONNX_OPERATORS,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"PyTorch cannot export this {type(network.model).__name__} to ONNX: {reason}") from error
    assert exported is not None
    model = exported.model
    # Slices each expert's weights once, not at every run of the graph.
    fold_constants(model, input_size_limit=LARGEST, output_size_limit=LARGEST)
    for tidy in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        ClearMetadataAndDocStringPass(),
    ):
        tidy(model)
    foreign = {node.domain for node in model.graph.all_nodes()} - {""}
    if foreign:
        raise ValueError(f"the model needs operators that ONNX does not have, from {', '.join(sorted(foreign))}")
    model.producer_name, model.producer_version = "vismoe", version("vismoe")
    model.metadata_props[KEY] = description.to_json()
    return onnx_ir.to_proto(model).SerializeToString()
