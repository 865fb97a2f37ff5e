"""Operators of exported graphs.

The experts' product: rows sorted by expert, split by count, one expert after the other. In ONNX that is one Gather, one
Split, the experts' products, one Concat and one Gather back. The removal of overlapping boxes is a NonMaxSuppression.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

from vismoe.detection.decode import CANDIDATES, OVERLAP
from vismoe.moe import Rows
from vismoe.moe.execution.layouts import OneExpert


# A custom operator, which becomes one Split: slicing would need several nodes per expert.
@torch.library.custom_op("vismoe::split_rows", mutates_args=())
def split_rows(rows: Tensor, count: Tensor) -> list[Tensor]:
    """Splits rows (R, d) into E parts of `count` (E,) rows."""
    return [part.clone() for part in rows.split(count.tolist())]


@split_rows.register_fake
def _(rows: Tensor, count: Tensor) -> list[Tensor]:
    sizes = torch.library.get_ctx()
    return [rows.new_empty(sizes.new_dynamic_size(), rows.shape[1]) for _ in range(count.shape[0])]


def _split_rows_onnx(rows: Any, count: Any) -> Any:
    return op.SplitToSequence(rows, count, axis=0, keepdims=1)  # the optimiser makes it a Split


def _keep_best_onnx(boxes: Any, scores: Any) -> Any:
    ops: Any = op  # typed for tensors of known types only
    limits = [ops.Constant(value_ints=[CANDIDATES])] + [ops.Constant(value_floats=[x]) for x in (OVERLAP, 0.0)]
    kept = ops.NonMaxSuppression(boxes, scores, *limits)  # (n, 3): image, class, candidate
    places = ops.Gather(kept, ops.Constant(value_ints=[0, 2]), axis=1)
    none = ops.ConstantOfShape(ops.Shape(boxes, start=0, end=2), value=_boolean(False))
    return ops.ScatterND(none, places, ops.ConstantOfShape(ops.Shape(kept, start=0, end=1), value=_boolean(True)))


def _boolean(value: bool) -> onnx.TensorProto:
    return onnx.helper.make_tensor("value", onnx.TensorProto.BOOL, [1], [value])


ONNX_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.vismoe.split_rows.default: _split_rows_onnx,
    torch.ops.vismoe.keep_best.default: _keep_best_onnx,
}
"""Custom operators and their ONNX translations."""


def export_product(experts: nn.Module, rows: Rows) -> Tensor:
    """A product for export: only the experts' rows have input-dependent shapes. For plans that drop no token."""
    parts = split_rows(rows.values, rows.count)
    return torch.cat([experts(part, OneExpert(number)) for number, part in enumerate(parts)])


def masked_export_product(experts: nn.Module, rows: Rows) -> Tensor:
    """As `export_product`, for plans of masked tokens: their rows come last, and no expert computes them."""
    dead = rows.values.shape[0] - rows.count.sum()  # len() would fix the number in the graph
    *parts, rest = split_rows(rows.values, torch.cat([rows.count, dead[None]]))
    return torch.cat([*(experts(part, OneExpert(number)) for number, part in enumerate(parts)), rest])
