"""How an exported graph carries out a plan: rows sorted by expert, cut where the counts say, an expert at a time.

Each expert computes its own rows only, as many as the input gives it. In ONNX that is one Gather, one Split, the
experts' own products, one Concat and one Gather back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

from vismoe.moe import Experts, MoE, SparsePlan
from vismoe.moe.execution.layouts import OneExpert


# An operator, so that the sizes are read by one Split: cut by numbers, a graph has a handful of nodes for each number.
@torch.library.custom_op("vismoe::split_rows", mutates_args=())
def split_rows(rows: Tensor, count: Tensor) -> list[Tensor]:
    """Rows (R, d), cut into parts of `count` (E,) rows."""
    return [part.clone() for part in rows.split(count.tolist())]


@split_rows.register_fake
def _(rows: Tensor, count: Tensor) -> list[Tensor]:
    sizes = torch.library.get_ctx()
    return [rows.new_empty(sizes.new_dynamic_size(), rows.shape[1]) for _ in range(count.shape[0])]


def _split_rows_onnx(rows: Any, count: Any) -> Any:
    return op.SplitToSequence(rows, count, axis=0, keepdims=1)  # the optimiser makes it a Split


ONNX_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.vismoe.split_rows.default: _split_rows_onnx}
"""What becomes of our operators in ONNX."""


def export_backend(plan: SparsePlan, tokens: Tensor, experts: Experts) -> Tensor:
    """A backend whose graph has no shape that depends on the input but the experts' rows. For plans that drop nothing
    and know each token's rows."""
    assert plan.inverse is not None
    parts = split_rows(tokens.index_select(0, plan.token), plan.count)
    rows = torch.cat([experts(part, OneExpert(number)) for number, part in enumerate(parts)])
    combined = None
    for row in plan.inverse.unbind(1):
        weighted = rows.index_select(0, row) * plan.weight.index_select(0, row)[:, None]
        combined = weighted if combined is None else combined + weighted
    assert combined is not None
    return combined


@contextmanager
def exporting(model: nn.Module) -> Iterator[None]:
    """Inside the block the sparse layers of `model` use `export_backend`; then their own again."""
    layers = [(module, module.backend) for module in model.modules() if isinstance(module, MoE)]
    try:
        for layer, _ in layers:
            layer.backend = export_backend
        yield
    finally:
        for layer, backend in layers:
            layer.backend = backend


@contextmanager
def at_evaluation(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` is at evaluation; then each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
