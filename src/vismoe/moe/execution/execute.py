"""The one place where a plan is carried out: dispatch, the experts' products, combine.

A backend is a callable (plan, tokens (N, d), experts) -> tokens (N, d): here `loop`, slow and obvious, the oracle,
`grouped`, which computes live rows only, and `padded`, whose shapes are static; `mixed` for soft plans. Others may fuse
or send rows away.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..experts.stacked import Experts
from ..plan import Plan, SoftPlan, SparsePlan
from .dispatch import combine, dispatch
from .layouts import Batched, OneExpert, SortedRows, Tiles, product_dtype

Backend = Callable[[Any, Tensor, Experts], Tensor]
"""(plan, tokens (N, d), experts) -> tokens (N, d)."""
TILE = 64
"""Rows of a tile: enough for a product to be worth its weights' transfer, few enough to pad little."""


def execute(
    plan: Plan,
    tokens: Float[Tensor, "N d"],
    experts: Experts,
    backend: Backend | None = None,
    bfloat16_exchange: bool = False,
) -> Float[Tensor, "N d"]:
    """Each token becomes the weighted sum of its experts' outputs, 0 if it has none; by default by `grouped`, soft
    plans by `mixed`. `bfloat16_exchange`: what goes to experts and what they answer is rounded to bfloat16, as it were
    between machines; weights and sums are not."""
    chosen: Backend = backend or (mixed if isinstance(plan, SoftPlan) else grouped)
    if not bfloat16_exchange:
        return chosen(plan, tokens, experts)
    return chosen(plan, _rounded(tokens), lambda x, layout: _rounded(experts(x, layout)))


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def loop(plan: SparsePlan, tokens: Tensor, experts: Experts) -> Tensor:
    """One expert after the other, each by plain indexing. The oracle: no speed, no static shapes."""
    combined = torch.zeros_like(tokens, dtype=torch.promote_types(tokens.dtype, torch.float32))
    dtype, start = tokens.dtype, 0
    for number, count in enumerate(plan.count.tolist()):
        rows = slice(start, start + count)
        output = experts(tokens[plan.token[rows]], OneExpert(number))
        combined = combined.index_add(0, plan.token[rows], output.to(combined.dtype) * plan.weight[rows, None])
        dtype, start = output.dtype, start + count
    return combined.to(dtype)


def grouped(plan: SparsePlan, tokens: Tensor, experts: Experts) -> Tensor:
    """Live rows only, whatever the load, and no graph break. On CPU an operator reads the counts and multiplies each
    expert's rows in turn. Elsewhere nothing waits for the device: one grouped product in bfloat16, tiles of rows in
    other types, whose grouped products would wait."""
    if tokens.device.type != "cpu" and product_dtype(tokens) != torch.bfloat16:
        return _tiled(plan, tokens, experts, Tiles.of_height(plan, TILE))
    return combine(plan, experts(dispatch(plan, tokens), SortedRows(plan)))


def padded(plan: SparsePlan, tokens: Tensor, experts: Experts) -> Tensor:
    """Every expert gets a buffer of the plan's capacity, one batched product multiplies all: static shapes, no graph
    break. Without a capacity a buffer holds all tokens, which costs E times the work."""
    return _tiled(plan, tokens, experts, Tiles.of_capacity(plan))


def mixed(plan: SoftPlan, tokens: Tensor, experts: Experts) -> Tensor:
    """Every expert computes its slots' mixtures of tokens, every token becomes a mixture of their outputs."""
    groups, size, _, slots = plan.dispatch.shape
    x = _mix("gsep,gsd->egpd", plan.dispatch, tokens.view(groups, size, tokens.shape[1]))
    y = experts(x.flatten(1, 2), Batched())
    return _mix("gsep,egpd->gsd", plan.combine, y.unflatten(1, (groups, slots))).flatten(0, 1)


def _mix(equation: str, weights: Tensor, values: Tensor) -> Tensor:
    """A product with float32 weights, in the values' type (autocast's, where it is on)."""
    return torch.einsum(equation, weights, values.to(weights.dtype)).to(values.dtype)


def _tiled(plan: SparsePlan, tokens: Tensor, experts: Experts, tiles: "Tiles") -> Tensor:
    rows = dispatch(plan, tokens)
    if not rows.shape[0]:  # Slots must point at something.
        rows = F.pad(rows, (0, 0, 0, 1))
    x = torch.where(tiles.used[..., None], rows[tiles.row_of_slot], 0)
    y = experts(x, tiles).flatten(0, 1)
    return combine(plan, torch.where(tiles.live[:, None], y[tiles.slot_of_row], 0))
