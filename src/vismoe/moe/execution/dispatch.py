"""Carrying tokens to rows and weighted rows back, with gathers for gradients where a plan knows each token's rows."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..plan import SparsePlan


def dispatch(plan: SparsePlan, tokens: Float[Tensor, "N d"]) -> Float[Tensor, "R d"]:
    """Each row's token. Backward is a gather too where the plan knows each token's rows."""
    if plan.inverse is None:
        return tokens.index_select(0, plan.token)
    return _Dispatch.apply(tokens, plan.token, plan.inverse)


def combine(plan: SparsePlan, rows: Float[Tensor, "R d"]) -> Float[Tensor, "N d"]:
    """The weighted sum of each token's rows, in float32, returned in the rows' type."""
    if plan.inverse is None:
        weighted = rows * plan.weight[:, None]  # weights are float32
        return weighted.new_zeros(plan.num_tokens, rows.shape[1]).index_add(0, plan.token, weighted).to(rows.dtype)
    return _Combine.apply(rows, plan.weight, plan.token, plan.inverse)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(tokens: Tensor, token: Tensor, inverse: Tensor) -> Tensor:
        return tokens.index_select(0, token)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _rows_of_tokens(grad_rows, inverse).sum(1), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, weight: Tensor, token: Tensor, inverse: Tensor) -> Tensor:
        weight_Nk1 = weight.index_select(0, inverse.flatten()).view(*inverse.shape, 1)
        return (_rows_of_tokens(rows, inverse) * weight_Nk1).sum(1).to(rows.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad_tokens: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weight, token = ctx.saved_tensors
        grad = grad_tokens.index_select(0, token)
        grad_weight = (grad * rows).sum(1, dtype=weight.dtype)
        return (grad * weight[:, None]).to(rows.dtype), grad_weight, None, None


def _rows_of_tokens(rows_Rd: Tensor, inverse_Nk: Tensor) -> Tensor:
    return rows_Rd.index_select(0, inverse_Nk.flatten()).view(*inverse_Nk.shape, rows_Rd.shape[1])
