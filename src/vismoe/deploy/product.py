"""The experts' product in an exported graph: rows sorted by expert, split by count, one expert after the other.

In ONNX that is one Gather, one Split, the experts' products, one Concat and one Gather back.
"""

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

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


ONNX_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.vismoe.split_rows.default: _split_rows_onnx}
"""Custom operators and their ONNX translations."""


def export_product(experts: nn.Module, rows: Rows) -> Tensor:
    """A product for export: only the experts' rows have input-dependent shapes. For plans that drop no token."""
    parts = split_rows(rows.values, rows.count)
    return torch.cat([experts(part, OneExpert(number)) for number, part in enumerate(parts)])
