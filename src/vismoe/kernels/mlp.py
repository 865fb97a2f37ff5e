"""Experts' MLPs on rows sorted by expert: the compiled forward and backward pass behind autograd."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .memory import uninitialized
from .selection import kernels_in_use, native

ACTIVATIONS = {"gelu_tanh": 0, "gelu": 1, "relu": 2, "silu": 3}
"""The kernels' numbers of the activations that they know."""

TENSORS = ("up", "up_bias", "gate", "gate_bias", "norm", "norm_bias", "down", "down_bias")
"""The parameters of experts, in the kernels' order."""
Called = Callable[..., Tensor]


@dataclass(frozen=True)
class ExpertTensors:
    """What the kernels take of experts: float32, contiguous, on the CPU; None for what is not there.

    - `up`, `gate`: (E, h, d); `down`: (E, d, h); biases and norm: (E, h), `down_bias`: (E, d).
    - `eps`: the norm's epsilon; `activation`: a number of `ACTIVATIONS`.
    - `packed`: whether `up`, `gate` and `down` are in panels, as `pack_experts` returns them; they may be in bfloat16
      then.
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

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrices, of the rows and of the answers."""
        return self.up.dtype

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


@dataclass(frozen=True)
class Exchanged:
    """How rows, sorted by expert, and tokens belong together where every token has k rows.

    - `token`: (R,), int64, the token of each row; `inverse`: (N, k), int64, the rows of each token.
    - `weight`: (R,), float32, the weight of each row's answer in its token's sum.
    """

    token: Tensor
    inverse: Tensor
    weight: Tensor


def apply_experts(
    experts: ExpertTensors, x: Tensor, count: Tensor, called: Called, exchanged: Exchanged | None = None
) -> Tensor:
    """The answer of each row's expert, 0 for rows behind the last expert's; or each token's weighted sum of its rows'
    answers.

    **Arguments:**

    - `x`: rows (R, d) sorted by expert, or tokens (N, d) where `exchanged` is given; contiguous, of the experts' type.
    - `count`: (E,), int64, contiguous, rows of each expert.
    - `called`: the same by calling the experts as modules, x -> answers, or (x, weight) -> sums where `exchanged` is
      given; gradients of gradients are computed by it.
    - `exchanged`: how rows and tokens belong together; default None: `x` are rows.
    """
    weight = None if exchanged is None else exchanged.weight
    if experts.packed:
        check_no_gradient(x)
        check_packed(experts.up)
        return _forward(experts, exchanged, x, weight, count, None, None, None)
    if torch.is_grad_enabled():
        y: Tensor = _Experts.apply(experts, called, exchanged, x, weight, count, *experts.tensors)
        return y
    return _forward(experts, exchanged, x, weight, count, None, None, None)


def _rows_and_sums(exchanged: Exchanged | None, x: Tensor, weight: Tensor | None, count: Tensor) -> tuple[int, ...]:
    """The kernels' arguments of rows and of sums."""
    if exchanged is None:
        return len(x), x.data_ptr(), 0, count.data_ptr(), 0, 0, 0, 0
    rows = len(exchanged.token), x.data_ptr(), exchanged.token.data_ptr(), count.data_ptr()
    return *rows, *exchanged.inverse.shape, exchanged.inverse.data_ptr(), address(weight)


def _forward(
    experts: ExpertTensors,
    exchanged: Exchanged | None,
    x: Tensor,
    weight: Tensor | None,
    count: Tensor,
    answers: Tensor | None,
    kept_up: Tensor | None,
    kept_gate: Tensor | None,
) -> Tensor:
    y = torch.empty_like(x)
    sizes = *experts.arguments, *_rows_and_sums(exchanged, x, weight, count)
    if experts.dtype == torch.bfloat16:
        native().forward_bfloat16(torch.get_num_threads(), *sizes, y.data_ptr())
        return y
    if exchanged is not None and answers is None and exchanged.inverse.shape[1] > 1:
        answers = x.new_empty(len(exchanged.token), experts.dim)
    of_rows, of_tokens = (y, None) if exchanged is None else (answers, y)
    outputs = of_rows, of_tokens, kept_up, kept_gate
    native().forward(torch.get_num_threads(), *sizes, *map(address, outputs))
    return y


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        experts: ExpertTensors,
        called: Called,
        exchanged: Exchanged | None,
        x: Tensor,
        weight: Tensor | None,
        count: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        answers, kept_up, kept_gate = None, None, None
        if any(ctx.needs_input_grad):
            rows = len(x) if exchanged is None else len(exchanged.token)
            kept_up = uninitialized(rows, experts.hidden_dim)
            kept_gate = None if experts.gate is None else uninitialized(rows, experts.hidden_dim)
            answers = None if exchanged is None else x.new_empty(rows, experts.dim)
            ctx.experts, ctx.called, ctx.exchanged = experts, called, exchanged
            ctx.save_for_backward(x, weight, count, answers, kept_up, kept_gate, *tensors)
        return _forward(experts, exchanged, x, weight, count, answers, kept_up, kept_gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, answers, kept_up, kept_gate, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is itself to be differentiated
            return None, None, None, *_differentiable(ctx, grad, x, weight, count, *tensors)
        wants_x, wants_weight, _, *wants = ctx.needs_input_grad[3:]
        grad = grad.contiguous()
        experts = replace(ctx.experts, **dict(zip(TENSORS, tensors, strict=True)))  # parameters may have moved since
        work_up = uninitialized(*kept_up.shape)
        work_gate = None if kept_gate is None else uninitialized(*kept_gate.shape)
        grad_x = torch.empty_like(x) if wants_x else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grads = [uninitialized(*each.shape) if want else None for each, want in zip(tensors, wants, strict=True)]
        sizes = _rows_and_sums(ctx.exchanged, x, weight, count)
        pointers = map(address, (grad, answers, kept_up, kept_gate, work_up, work_gate, grad_x, grad_weight, *grads))
        native().backward(torch.get_num_threads(), *experts.arguments, *sizes, *pointers)
        return None, None, None, grad_x, grad_weight, None, *grads


def _differentiable(ctx: Any, grad: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """The gradients of x, weight, count (None) and tensors, by operations that can be differentiated again."""
    wanted = [tensor for tensor, want in zip(inputs, ctx.needs_input_grad[3:], strict=True) if want]
    y = ctx.called(*inputs[: 1 if ctx.exchanged is None else 2])
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))  # type: ignore[arg-type]
    return [next(found) if want else None for want in ctx.needs_input_grad[3:]]


def check_no_gradient(x: Tensor) -> None:
    """Packed weights have no backward.

    **Raises:** RuntimeError where a gradient of x is wanted.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "a network that vismoe.optimize made has no gradients: call it under torch.inference_mode(), or use the "
            "original network"
        )


def check_packed(panels: Tensor) -> None:
    """Whether the kernels in use can read a packed weight.

    **Raises:** RuntimeError where others packed it.
    """
    kernels = native()
    if panels.dtype == torch.bfloat16:
        fits = kernels is not None and kernels.has_bfloat16()
    else:
        fits = kernels is not None and panels.shape[-1] == kernels.panel()
    if not fits:
        raise RuntimeError(
            f"the compiled kernels in use ({kernels_in_use()}) cannot read weights that others packed: optimize the "
            "original network again"
        )


def pack_experts(experts: ExpertTensors, dtype: torch.dtype = torch.float32) -> ExpertTensors:
    """The experts with their matrices in panels, in the order in which a product reads them.

    **Arguments:** `dtype`: type of the matrices, torch.float32 (default) or torch.bfloat16; sums, biases and norms are
    in float32.

    **Raises:** RuntimeError where the kernels in use cannot multiply this type.
    """
    fields = {name: getattr(experts, name) for name in experts.__dataclass_fields__}
    for name in ("up", "gate", "down"):
        if fields[name] is not None:
            fields[name] = packed(fields[name], dtype)
    return ExpertTensors(**fields | {"packed": True})


COLUMNS, DEPTH = 32, 32
"""In bfloat16: columns of a panel, and what its rows are filled up to a multiple of."""


def packed(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Stacked float32 matrices (E, out, in) in panels of this type; missing columns and rows are 0. float32: (E,
    panels, in, columns of a panel); bfloat16: (E, panels, in / 2, 32, 2)."""
    kernels = native()
    if kernels is None:
        raise RuntimeError("packed weights need compiled kernels, and none are in use (vismoe.kernels.kernels_in_use)")
    num, out, size = weight.shape
    if dtype == torch.float32:
        panels = weight.new_empty(num, -(-out // kernels.panel()), size, kernels.panel())
        kernels.pack(torch.get_num_threads(), weight.data_ptr(), num, out, size, panels.data_ptr())
        return panels
    if not kernels.has_bfloat16():
        raise RuntimeError(f"the compiled kernels in use ({kernels_in_use()}) cannot multiply bfloat16")
    panels = weight.new_empty(num, -(-out // COLUMNS), -(-size // DEPTH) * DEPTH // 2, COLUMNS, 2, dtype=dtype)
    kernels.pack_bfloat16(torch.get_num_threads(), weight.data_ptr(), num, out, size, panels.data_ptr())
    return panels
