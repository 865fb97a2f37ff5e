"""Multiplies rows that are sorted by expert by their experts' matrices. One custom operator, opaque to compilers.

Its CPU kernel reads the counts and multiplies one expert's rows after the other, directly into the output, so that
nothing is stacked or concatenated. Weights are (E, out, in), as for `torch.nn.functional.linear`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("vismoe::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, count: Tensor) -> Tensor:
    """x (R, in), weight (E, out, in), bias (E, out), count (E,) -> (R, out); 0 after the last expert's rows."""
    y = x.new_empty(x.shape[0], weight.shape[1])
    x_by_expert, (*outs, rest) = _by_expert(count, x, y)
    biases = [None] * len(weight) if bias is None else bias.unbind()
    for rows, matrix, vector, out in zip(x_by_expert, weight.mT.unbind(), biases, outs, strict=False):
        if not rows.shape[0]:  # saves a call
            continue
        if vector is None:
            torch.mm(rows, matrix, out=out)
        else:
            torch.addmm(vector, rows, matrix, out=out)
    rest.zero_()
    return y


def _by_expert(count: Tensor, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Splits each tensor (R, …) into views: the rows of each expert, then the rows after the last expert's."""
    counts: list[int] = count.tolist()
    return [rows.split([*counts, len(rows) - sum(counts)]) for rows in tensors]


@torch.library.custom_op("vismoe::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(grad: Tensor, x: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    grad = grad.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_bias = weight.new_empty(weight.shape[:2])
    grad_by_expert, x_by_expert, (*to_rows, rest) = _by_expert(count, grad, x, grad_x)
    outs = zip(to_rows, grad_weight.unbind(), grad_bias.unbind(), strict=True)
    for grad_rows, rows, matrix, (to_row, to_matrix, to_bias) in zip(
        grad_by_expert, x_by_expert, weight.unbind(), outs, strict=False
    ):
        torch.mm(grad_rows, matrix, out=to_row)
        torch.mm(grad_rows.mT, rows, out=to_matrix)
        torch.sum(grad_rows, 0, out=to_bias)
    rest.zero_()
    return grad_x, grad_weight, grad_bias


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, count: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, count = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, count)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    grad_x, grad_weight, grad_bias = grouped_linear_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None


grouped_linear.register_autograd(_backward, setup_context=_setup)


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward_twice(ctx: Any, to_x: Tensor, to_weight: Tensor, to_bias: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    grad, x, weight, count = ctx.saved_tensors
    grad_grad = grouped_linear(to_x, weight, to_bias, count) + grouped_linear(x, to_weight, None, count)
    grad_x = grouped_linear_backward(grad, x, to_weight, count)[0]
    grad_weight = grouped_linear_backward(grad, to_x, weight, count)[1]
    return grad_grad, grad_x, grad_weight, None


grouped_linear_backward.register_autograd(_backward_twice, setup_context=_setup_twice)


# FLOP counters see only shapes, so rows after the last expert's are counted too.
@register_flop_formula(torch.ops.vismoe.grouped_linear)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], *others: Any, **options: Any) -> int:
    return 2 * x[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.vismoe.grouped_linear_backward)
def _flops_backward(
    grad: tuple[int, ...], x: tuple[int, ...], weight: tuple[int, ...], *others: Any, **options: Any
) -> int:
    return 4 * x[0] * weight[1] * weight[2]
