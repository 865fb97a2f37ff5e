"""Experts' MLPs on rows sorted by expert: the compiled forward and backward pass behind autograd."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .selection import native

ACTIVATIONS = {"gelu_tanh": 0, "gelu": 1, "relu": 2, "silu": 3}
"""The kernels' numbers of the activations that they know."""

TENSORS = ("up", "up_bias", "gate", "gate_bias", "norm", "norm_bias", "down", "down_bias")
"""The parameters of experts, in the kernels' order."""
Called = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExpertTensors:
    """What the kernels take of experts: float32, contiguous, on the CPU; None for what is not there.

    - `up`, `gate`: (E, h, d); `down`: (E, d, h); biases and norm: (E, h), `down_bias`: (E, d).
    - `eps`: the norm's epsilon; `activation`: a number of `ACTIVATIONS`.
    - `packed`: whether `up`, `gate` and `down` are in panels, as `pack_experts` returns them.
    """

    num_experts: int
    dim: int
    hidden_dim: int
    up: Tensor
    up_bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None
    norm: Tensor | None
    norm_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    eps: float
    activation: int
    packed: bool = False

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The parameters, in the kernels' order."""
        return tuple(getattr(self, name) for name in TENSORS)

    @cached_property
    def arguments(self) -> tuple[Any, ...]:
        """The kernels' arguments; addresses hold as long as the tensors are not moved."""
        sizes = self.num_experts, self.dim, self.hidden_dim
        return *sizes, *map(address, self.tensors), self.eps, self.activation, int(self.packed)

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses, which are not a copy's."""
        return {name: value for name, value in vars(self).items() if name != "arguments"}


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def apply_experts(experts: ExpertTensors, rows: Tensor, count: Tensor, called: Called) -> Tensor:
    """The answer of each row's expert, 0 for rows behind the last expert's.

    **Arguments:**

    - `rows`: (R, d), float32, contiguous, sorted by expert; `count`: (E,), int64, rows of each expert.
    - `called`: the same by calling the experts as modules, rows -> answers; gradients of gradients are computed by it.
    """
    if torch.is_grad_enabled():
        answers: Tensor = _Experts.apply(experts, called, rows, count, *experts.tensors)
        return answers
    return _forward(experts, rows, count, None, None)


def _forward(
    experts: ExpertTensors, rows: Tensor, count: Tensor, kept_up: Tensor | None, kept_gate: Tensor | None
) -> Tensor:
    answers = torch.empty_like(rows)
    pointers = rows.data_ptr(), 0, count.data_ptr(), answers.data_ptr(), address(kept_up), address(kept_gate)
    native().forward(torch.get_num_threads(), *experts.arguments, len(rows), *pointers)
    return answers


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, experts: ExpertTensors, called: Called, rows: Tensor, count: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        kept: list[Tensor | None] = [None, None]
        if any(ctx.needs_input_grad):
            size = len(rows), experts.hidden_dim
            kept = [rows.new_empty(size), None if experts.gate is None else rows.new_empty(size)]
            ctx.experts, ctx.called = experts, called
            ctx.save_for_backward(rows, count, *kept, *tensors)
        return _forward(experts, rows, count, *kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, count, kept_up, kept_gate, *tensors = ctx.saved_tensors
        wants_rows, _, *wants = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # the gradient is itself to be differentiated
            return None, None, *_differentiable(ctx, grad, rows, count, tensors)
        grad, experts = grad.contiguous(), ctx.experts
        work_up, work_gate = torch.empty_like(kept_up), None if kept_gate is None else torch.empty_like(kept_gate)
        grad_rows = torch.empty_like(rows) if wants_rows else None
        grads = [torch.empty_like(tensor) if want else None for tensor, want in zip(tensors, wants, strict=True)]
        pointers = rows.data_ptr(), 0, count.data_ptr()
        outputs = map(address, (grad, kept_up, kept_gate, work_up, work_gate, grad_rows, *grads))
        native().backward(torch.get_num_threads(), *experts.arguments, len(rows), *pointers, *outputs)
        return None, None, grad_rows, None, *grads


def _differentiable(
    ctx: Any, grad: Tensor, rows: Tensor, count: Tensor, tensors: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of rows, count (None) and tensors, by operations that can be differentiated again."""
    inputs = [rows, count, *tensors]
    wanted = [tensor for tensor, want in zip(inputs, ctx.needs_input_grad[2:], strict=True) if want]
    answers = ctx.called(rows)
    found = iter(torch.autograd.grad(answers, wanted, grad, create_graph=True))  # type: ignore[arg-type]
    return [next(found) if want else None for want in ctx.needs_input_grad[2:]]


def pack_experts(experts: ExpertTensors) -> ExpertTensors:
    """The experts with their matrices in panels, in the order in which a product reads them.

    **Raises:** RuntimeError where no kernels are in use.
    """
    fields = {name: getattr(experts, name) for name in experts.__dataclass_fields__}
    for name in ("up", "gate", "down"):
        if fields[name] is not None:
            fields[name] = packed(fields[name])
    return ExpertTensors(**fields | {"packed": True})


def packed(weight: Tensor) -> Tensor:
    """Stacked matrices (E, out, in) in panels: (E, panels, in, columns of a panel); missing columns are 0."""
    kernels = native()
    if kernels is None:
        raise RuntimeError("packed weights need compiled kernels, and none are in use (vismoe.kernels.kernels_in_use)")
    num, out, size = weight.shape
    panels = weight.new_empty(num, -(-out // kernels.panel()), size, kernels.panel())
    kernels.pack(torch.get_num_threads(), weight.data_ptr(), num, out, size, panels.data_ptr())
    return panels
