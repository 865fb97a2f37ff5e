"""An exchange gathers the experts' input rows from the tokens, and combines the experts' outputs into the tokens'.

A product (`products.py`) multiplies rows by the experts' weights. Neither depends on the other.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..plan import Plan, SoftPlan, SparsePlan


@dataclass(frozen=True)
class Rows:
    """Rows sorted by expert: the input of a product.

    - `values`: (R, d), each row's token. Dead rows (dropped or masked) may follow the last expert's rows: their outputs
      are not used, but must be finite.
    - `count`: number of live rows of each expert in this process.
    - `bound`: static upper bound of `count`.
    - `even`: whether every count is `bound` and no row is dead, so that counts need not be read; default False.

    An exchange may use a subclass that also stores what it needs to combine the outputs.
    """

    values: Float[Tensor, "R d"]
    count: Int[Tensor, " E"]
    bound: int
    even: bool = False


@dataclass(frozen=True)
class Exchange:
    """Base class of exchanges. Rows belong to the experts in this process; their tokens may come from any process.

    **Arguments:**

    - `bfloat16`: whether the experts' inputs and outputs are rounded to bfloat16, which simulates a low-precision
      exchange. Combine weights and sums are not rounded. Default False.
    """

    bfloat16: bool = False

    def dispatch(self, plan: Plan, tokens: Float[Tensor, "N d"]) -> Rows:
        """Sends this process's tokens to their experts. Returns the rows of the experts in this process."""
        raise NotImplementedError(f"{type(self).__name__} must define dispatch(plan, tokens) -> Rows")

    def combine(self, plan: Plan, rows: Rows, answers: Float[Tensor, "R d"]) -> Float[Tensor, "N d"]:
        """Sends the experts' outputs back. Returns for each token the weighted sum of its experts' outputs; 0 if it has
        no expert."""
        raise NotImplementedError(f"{type(self).__name__} must define combine(plan, rows, answers) -> tokens")

    def round(self, x: Tensor) -> Tensor:
        """Rounds rows or outputs to bfloat16 if the exchange does so."""
        return x.bfloat16().to(x.dtype) if self.bfloat16 else x


@dataclass(frozen=True)
class LocalExchange(Exchange):
    """The exchange within one process, which has all tokens and all experts. `bfloat16`: see `Exchange`."""

    def dispatch(self, plan: Plan, tokens: Float[Tensor, "N d"]) -> Rows:
        tokens = self.round(tokens)
        if isinstance(plan, SoftPlan):
            groups, size, _, slots = plan.dispatch.shape
            mixtures = _mix("gsep,gsd->egpd", plan.dispatch, tokens.view(groups, size, tokens.shape[1]))
            return Rows(mixtures.flatten(0, 2), plan.count, groups * slots, even=True)
        bound = plan.num_tokens if plan.capacity is None else plan.capacity
        return Rows(_tokens_of_rows(plan, tokens), plan.count, bound)

    def combine(self, plan: Plan, rows: Rows, answers: Float[Tensor, "R d"]) -> Float[Tensor, "N d"]:
        answers = self.round(answers)
        if isinstance(plan, SoftPlan):
            groups, _, experts, slots = plan.combine.shape
            mixed = answers.view(experts, groups, slots, answers.shape[1])
            return _mix("gsep,egpd->gsd", plan.combine, mixed).flatten(0, 1)
        return _sum_of_rows(plan, answers)


def _mix(equation: str, weights: Tensor, values: Tensor) -> Tensor:
    """A matrix product with float32 weights; the result has the type of the values (under autocast: its type)."""
    return torch.einsum(equation, weights, values.to(weights.dtype)).to(values.dtype)


def _tokens_of_rows(plan: SparsePlan, tokens: Tensor) -> Tensor:
    """The token of each row. If the plan has `inverse`, backward is a gather too."""
    if plan.inverse is None:
        return tokens.index_select(0, plan.token)
    dispatch = _Dispatch.forward if inside_transform() else _Dispatch.apply
    return dispatch(tokens, plan.token, plan.inverse)


def _sum_of_rows(plan: SparsePlan, rows: Tensor) -> Tensor:
    """The weighted sum of each token's rows, computed in float32, returned in the rows' type."""
    if plan.inverse is None:
        weighted = rows * plan.weight[:, None]  # weights are float32
        return weighted.new_zeros(plan.num_tokens, rows.shape[1]).index_add(0, plan.token, weighted).to(rows.dtype)
    combine = _Combine.forward if inside_transform() else _Combine.apply
    return combine(rows, plan.weight, plan.token, plan.inverse)


def inside_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, …) is active. These support neither autograd Functions with
    hand-written backward nor operators that read counts."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


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
