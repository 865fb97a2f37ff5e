"""Rows sorted by expert, each multiplied by its expert's matrix: one operator, so that compilers need not look inside.

Its CPU kernel reads the counts and multiplies each expert's rows in turn, writing into one output: nothing is stacked
or concatenated afterwards. Weights are (E, out, in) as `torch.nn.functional.linear` has them.
"""

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("vismoe::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, count: Tensor) -> Tensor:
    """x (R, in), weight (E, out, in), bias (E, out), count (E,) -> (R, out); 0 behind the last expert's rows."""
    y = x.new_empty(x.shape[0], weight.shape[1])
    ends = list(accumulate(count.tolist(), initial=0))
    for expert, (start, end) in enumerate(pairwise(ends)):
        if bias is None:
            torch.mm(x[start:end], weight[expert].mT, out=y[start:end])
        else:
            torch.addmm(bias[expert], x[start:end], weight[expert].mT, out=y[start:end])
    y[ends[-1] :].zero_()
    return y


@torch.library.custom_op("vismoe::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(grad: Tensor, x: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    grad = grad.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_bias = weight.new_empty(weight.shape[:2])
    ends = list(accumulate(count.tolist(), initial=0))
    for expert, (start, end) in enumerate(pairwise(ends)):
        torch.mm(grad[start:end], weight[expert], out=grad_x[start:end])
        torch.mm(grad[start:end].mT, x[start:end], out=grad_weight[expert])
        torch.sum(grad[start:end], 0, out=grad_bias[expert])
    grad_x[ends[-1] :].zero_()
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
    of_grad = grouped_linear(to_x, weight, to_bias, count) + grouped_linear(x, to_weight, None, count)
    of_x = grouped_linear_backward(grad, x, to_weight, count)[0]
    of_weight = grouped_linear_backward(grad, to_x, weight, count)[1]
    return of_grad, of_x, of_weight, None


grouped_linear_backward.register_autograd(_backward_twice, setup_context=_setup_twice)
