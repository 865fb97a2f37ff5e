"""The exchange between processes: each has some of the experts, and sends its rows to those that have theirs."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd, wait_tensor
from torch.distributed.distributed_c10d import GroupName
from torch.nn import functional as F

from vismoe.moe import Exchange, LocalExchange, Plan, Rows
from vismoe.moe.execution.layouts import Buffers
from vismoe.moe.plan import plan_from_choices


@dataclass(frozen=True)
class Way:
    """How rows of all lengths arrived.

    - `order`: (R,), which of the received rows each row is, after sorting by expert; `place`: its inverse.
    - `sent`, `received`: number of rows sent to, and received from, each process.
    """

    order: Int[Tensor, " R"]
    place: Int[Tensor, " R"]
    sent: list[int]
    received: list[int]


@dataclass(frozen=True, kw_only=True)
class ReceivedRows(Rows):
    """Rows of this process's experts that came from all processes.

    - `own`: this process's rows, sorted by all E experts, as they were before they were sent.
    - `way`: how they arrived, and so how outputs go back: with counts, or in buffers of one size.
    """

    own: Rows
    way: Way | Buffers


@dataclass(frozen=True)
class AllToAllExchange(Exchange):
    """The exchange of expert parallelism. Process number p of the group has experts p·E/P to (p+1)·E/P, without the
    last.

    Each process's gradient of its own experts is divided by the number of processes. So it is the gradient of the mean
    loss of these processes, as every other parameter's is after its gradients are averaged.

    **Arguments:**

    - `bfloat16`: whether rows are sent in bfloat16, forward and backward; default False: in their own type.
    - `group`: name of the process group.
    - `processes`: number of processes of the group, P; it divides E.
    - `static`: whether every process sends a buffer of the plan's capacity to every expert: no counts are exchanged,
      and shapes do not depend on the routing, but all processes must have equally many tokens. A plan without capacity
      has buffers for all tokens. Default False: only live rows are sent, after their counts.
    """

    group: GroupName = GroupName("")  # noqa: RUF009  a string for type checkers
    processes: int = 1
    static: bool = False

    def dispatch(self, plan: Plan, tokens: Float[Tensor, "N d"]) -> Rows:
        own = LocalExchange().dispatch(plan, tokens)
        return self._in_buffers(own) if self.static else self._ragged(own)

    def combine(self, plan: Plan, rows: Rows, answers: Float[Tensor, "R d"]) -> Float[Tensor, "N d"]:
        assert isinstance(rows, ReceivedRows)
        answers, own, way = _scale_gradient(answers, 1 / self.processes), rows.own, rows.way
        if isinstance(way, Buffers):
            by_process = _swap(answers.unflatten(0, (-1, self.processes, own.bound)))
            back = way.take_out(self._send(by_process.flatten(0, 2)).unflatten(0, (-1, own.bound)))
        else:
            back = self._send(_permute(answers, way.place, way.order), way.received, way.sent)
            back = F.pad(back, (0, 0, 0, len(own.values) - len(back)))  # dead rows
        return LocalExchange().combine(plan, own, back)

    def _ragged(self, own: Rows) -> ReceivedRows:
        """Exchanges the counts, then the live rows, and sorts what arrived by expert."""
        counts = all_to_all_single(own.count, None, None, self.group)
        counts_PE = wait_tensor(counts).view(self.processes, -1)
        sent: list[int] = own.count.view(self.processes, -1).sum(1).tolist()
        received: list[int] = counts_PE.sum(1).tolist()
        values = self._send(own.values[: sum(sent)], sent, received)
        experts = counts_PE.shape[1]
        number = torch.arange(experts, device=values.device).repeat(self.processes)
        expert_R = number.repeat_interleave(counts_PE.flatten(), output_size=len(values))
        plan = plan_from_choices(expert_R[None, :, None], values.new_ones(1, len(values), 1), experts)
        assert plan.inverse is not None
        way = Way(plan.token, plan.inverse.flatten(), sent, received)
        values = _scale_gradient(_permute(values, way.order, way.place), self.processes)
        return ReceivedRows(values, plan.count, len(values), own=own, way=way)

    def _in_buffers(self, own: Rows) -> ReceivedRows:
        """Exchanges buffers of one size, also their empty slots, which count as rows."""
        buffers = Buffers(own)
        arrived = self._send(buffers.put_in(own.values).flatten(0, 1))
        by_expert = _swap(arrived.unflatten(0, (self.processes, -1, own.bound)))
        values = _scale_gradient(by_expert.flatten(0, 2), self.processes)
        bound = self.processes * own.bound
        count = torch.full((len(own.count) // self.processes,), bound, device=values.device)
        return ReceivedRows(values, count, bound, even=True, own=own, way=buffers)

    def _send(self, rows: Tensor, sent: list[int] | None = None, received: list[int] | None = None) -> Tensor:
        """Sends rows, in the order of processes, and returns those received; equally many each if no numbers are
        given."""
        wire = (rows.bfloat16() if self.bfloat16 else rows).contiguous()
        arrived: Tensor = wait_tensor(all_to_all_single_autograd(wire, received, sent, self.group))
        return arrived.to(rows.dtype)


def _swap(rows: Tensor) -> Tensor:
    """Exchanges the two outermost dimensions."""
    return rows.transpose(0, 1).contiguous()


def _permute(rows: Tensor, order: Any, inverse: Any) -> Tensor:
    permuted: Tensor = _Permute.apply(rows, order, inverse)
    return permuted


class _Permute(torch.autograd.Function):
    """Reorders rows; backward is a gather too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Returns `x`, whose gradient is multiplied by `factor` in backward."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None
