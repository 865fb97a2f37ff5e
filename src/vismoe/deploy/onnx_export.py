"""A network as a plain ONNX file, which is compared with the network before it is called done."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from torch import Tensor, nn

from vismoe.files import whole_file
from vismoe.moe import MoE, TopKRouter
from vismoe.moe.record import unwrap
from vismoe.vit import evaluating, using_backend
from vismoe.weights.exported.description import KEY, Description, describe_model
from vismoe.weights.exported.onnx_model import OnnxModel, open_session

from .agreement import TOLERANCE, compare
from .product import ONNX_OPERATORS, export_product

LARGEST = 2**31 - 2**20
"""Bytes of weights: protobuf, and so ONNX in one file, ends at 2 GiB."""


@dataclass(frozen=True)
class OnnxExport:
    """A written file and what was measured of it: `size` in bytes; `difference`: the largest, of its logits in ONNX
    Runtime and the network's; on so many random `images`; `left_out`: further ones, in which some choice between two
    experts was too close to call."""

    path: Path
    size: int
    difference: float
    images: int
    left_out: int


def export_onnx(
    model: nn.Module,
    path: str | Path,
    dynamic_batch: bool = False,
    batch_size: int = 1,
    preprocessing: Mapping[str, Any] | None = None,
) -> OnnxExport:
    """Writes `path`, a file of standard ONNX operators, in which each expert computes its own tokens only.

    Its input `pixels` is float32 (batch, C, H, W), normalised already; its output `logits` (batch, classes). It says in
    its metadata, under "vismoe", how images are to be prepared and what the classes are called. The model is left as
    it was.

    **Arguments:** `model`: made by `create_model` (vismoe's or timm's), loaded, or transformers' for image
    classification, on the CPU in float32; `dynamic_batch`: takes any number of images, otherwise always `batch_size`;
    `preprocessing`: timm's data configuration (mean, std, …) where it differs from the model's own, or the model is
    transformers', which do not know any.

    **Raises:** ValueError where the path is taken or does not end in .onnx; for a model that drops tokens; where the
    file's logits, in ONNX Runtime, differ from the model's by more than 1e-4. Then nothing is written.
    """
    path, model = Path(path), unwrap(model)
    if isinstance(model, OnnxModel):
        raise ValueError(f"{model.path} is an ONNX file already")
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: the name of an ONNX file ends in .onnx")
    if path.exists():
        raise ValueError(f"{path} exists: choose another path, or remove it")
    if batch_size < 1 or (dynamic_batch and batch_size != 1):
        raise ValueError(f"batch_size={batch_size}: accepted are numbers ≥ 1, and none beside a dynamic batch")
    _check(model)
    description = describe_model(model, preprocessing)
    network, batch = LogitsOnly(model), None if dynamic_batch else batch_size
    input_size = tuple(description.preprocessing["input_size"])
    with evaluating(network):
        data = _serialise(network, description, batch)
        agreement = compare(network, open_session(data), input_size, batch)
    if agreement.difference > TOLERANCE:
        raise ValueError(
            f"the exported network's logits differ from the model's by up to {agreement.difference:.2g} on "
            f"{agreement.images} random images, more than {TOLERANCE:.0e}: nothing was written"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        aside.write_bytes(data)
    return OnnxExport(path, len(data), agreement.difference, agreement.images, agreement.left_out)


class LogitsOnly(nn.Module):
    """A network that gives its logits and nothing else; transformers' give them among other things."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.model(pixels)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits


def _check(model: nn.Module) -> None:
    if getattr(model, "predictions", "mean") != "mean" and getattr(model, "ensemble_size", 0):
        raise ValueError('this ensemble has a row of logits for each member; one an image is: set predictions="mean"')
    for name, layer in model.named_modules():
        if not isinstance(layer, MoE):
            continue
        router = layer.router
        if not isinstance(router, TopKRouter):
            raise ValueError(
                f"{name}: its router is {type(router).__name__}; what is exported is TopKRouter and its kin"
            )
        if router.eval_capacity_factor != "none" or layer.group_size != "none":
            raise ValueError(
                f"{name} drops tokens or routes them in groups at evaluation (eval_capacity_factor="
                f"{router.eval_capacity_factor!r}, group_size={layer.group_size!r}); what is exported is dropless: "
                'build the model with eval_capacity_factor="none" and group_size="none"'
            )
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ValueError(
                f"the model is on {tensor.device.type} in {tensor.dtype}; what is exported is float32 on the CPU: "
                "export model.cpu().float()"
            )
    size = sum(tensor.nbytes for tensor in tensors)
    if size > LARGEST:
        raise ValueError(f"{size / 2**30:.1f} GiB of weights: a file of ONNX holds less than 2 GiB")


def _serialise(network: nn.Module, description: Description, batch_size: int | None) -> bytes:
    # A dynamic dimension must not be 1 in the example: torch would take that for the only value.
    pixels = torch.zeros(2 if batch_size is None else batch_size, *description.preprocessing["input_size"])
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch_size is None else None
    with torch.no_grad(), using_backend(network, export_product):
        program = torch.export.export(network, (pixels,), dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits"],
            custom_translation_table=ONNX_OPERATORS,
            optimize=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    # One expert's weights, taken from all of them: now, not whenever the graph runs.
    fold_constants(model, input_size_limit=LARGEST, output_size_limit=LARGEST)
    for tidy in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        ClearMetadataAndDocStringPass(),
    ):
        tidy(model)
    foreign = {node.domain for node in model.graph.all_nodes()} - {""}
    if foreign:
        raise ValueError(f"the model needs operators that ONNX does not have: of {', '.join(sorted(foreign))}")
    model.producer_name, model.producer_version = "vismoe", version("vismoe")
    model.metadata_props[KEY] = description.to_json()
    return onnx_ir.to_proto(model).SerializeToString()
