"""Loss-free balancing (Wang et al. 2024): each expert has a bias, which only changes the choice of experts and which
follows the experts' load.

It needs nothing from the training loop. A training forward counts its choices; the next training forward first moves
the bias by these counts. So an activation recompute, which runs inside backward, repeats the choices of its forward.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor

# A group by its name, which operators and pickles can hold: torch has no public function for that.
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from ..resident import resident
from .base import Router

BalanceRule = Literal["log", "sign", "z-score"]
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log1p,
    "sign": lambda load_E: (load_E - 1).sign(),
    "z-score": lambda load_E: (load_E - 1) / load_E.std(correction=0).clamp_min(1e-6),
}
"""The bias is decreased by a step times this function of load ÷ mean load. "log": large moves for experts with many
times the mean load, small ones for experts without tokens, none for even loads. "sign": the published rule (Wang et al.
2024, *Auxiliary-Loss-Free Load Balancing*), on logits. "z-score": the excess load ÷ the standard deviation of loads."""
STEPS = {"log": 0.2, "sign": 0.03, "z-score": 0.03}
"""Step of each rule, in logits. Chosen by `benchmarks/balance_rules.py`; see `docs/balancing.md`."""


APART = (
    "if several processes train one network (FSDP, …), each then has another bias, and so another network; set "
    "`layer.router.balance_group = torch.distributed.group.WORLD` for every vismoe.MoE layer of it"
)
JOINED = (
    "inside DistributedDataParallel's Join choices are not summed over processes, because a process without further "
    "data makes none: each step moves the bias by the choices of one process"
)
_WARNED: set[str] = set()


def move_bias(bias_E: Float[Tensor, " E"], count_E: Int[Tensor, " E"], rule: str = "log") -> Float[Tensor, " E"]:
    """Moves a bias by one step: up for experts with less than the mean load, down for experts with more.

    The moves are centred over the experts: this changes no choice, and keeps the biases from drifting.

    **Arguments:**

    - `bias_E`: the bias of each expert, in logits.
    - `count_E`: how often each expert was chosen; if all are 0, the bias is unchanged.
    - `rule`: "log", "sign" or "z-score"; default "log".

    **Returns:** the new bias (E,).
    """
    excess_E = RULES[rule](count_E / count_E.float().mean().clamp_min(1e-6))
    return bias_E - STEPS[rule] * (excess_E - excess_E.mean())


def check_rule(rule: str) -> str:
    """Raises ValueError for an unknown rule."""
    if rule not in RULES:
        raise ValueError(f"balance_rule={rule!r}: accepted are {', '.join(map(repr, get_args(BalanceRule)))}")
    return rule


def inside_backward() -> bool:
    """Whether the current forward is a recompute inside backward. Valid at run time only, not while a compiler
    traces."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


# These are operators so that a compiled graph calls `inside_backward` when it runs, and so that no compiler recomputes
# them on its own.
@torch.library.custom_op("vismoe::moved_bias", mutates_args=("bias", "count"))
def _moved_bias(bias: Tensor, count: Tensor, rule: str) -> Tensor:
    if not inside_backward():
        bias.copy_(move_bias(bias, count, rule))
        count.zero_()
    return bias.clone()


@torch.library.custom_op("vismoe::count_choices", mutates_args=("count",))
def _count_choices(count: Tensor, load: Tensor, group: str) -> None:
    if not inside_backward():
        count.copy_(load)
        processes = _counting_processes(group)
        if processes is not None:
            torch.distributed.all_reduce(count, group=processes)


def _counting_processes(group: str) -> torch.distributed.ProcessGroup | None:
    """The processes whose choices are summed; None: only this process's are counted. Called at each count, because a
    network may be wrapped or compiled after it was built."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    # torch has no public way to get from a layer to the wrapper around it, or to see whether that is inside Join. The
    # public `will_sync_module_buffers` does not help: inside `no_sync` it is False, but the next forward broadcasts.
    wrapper = DistributedDataParallel._active_ddp_module
    if wrapper is not None and wrapper._join_config.enable:
        # A process without further data calls no layer, so the others would wait for it in the sum.
        if group or not wrapper.forward_sync_buffers:
            _warn_once(JOINED if wrapper.forward_sync_buffers else f"{JOINED}; {APART}")
        return None
    if group:
        return _resolve_process_group(group)  # type: ignore[arg-type]
    if wrapper is not None:  # by default it copies rank 0's buffers to all processes before each forward
        return None if wrapper.forward_sync_buffers else wrapper.process_group
    # Not an error: each process may train another network, or copy its biases to the others. A layer cannot distinguish
    # this from FSDP, which passes it whole parameters.
    if torch.distributed.get_world_size() > 1:
        _warn_once(f"experts are balanced by each process's own choices: {APART}")
    return None


def _warn_once(text: str) -> None:
    if text not in _WARNED:
        _WARNED.add(text)
        warnings.warn(text, stacklevel=2)


@_moved_bias.register_fake
def _(bias: Tensor, count: Tensor, rule: str) -> Tensor:
    resident(count, bias)
    return torch.empty_like(bias)


@_count_choices.register_fake
def _(count: Tensor, load: Tensor, group: str) -> None:
    resident(count, load)


# Under torch.func.vmap: samples with one bias are counted together; several networks, with one bias each, separately.
@_moved_bias.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], bias: Tensor, count: Tensor, rule: str) -> tuple[Tensor, int]:
    each = zip(_of_each(bias, in_dims[0], info), _of_each(count, in_dims[1], info), strict=True)
    return torch.stack([_moved_bias(*of_one, rule) for of_one in each]), 0


@_count_choices.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], count: Tensor, load: Tensor, group: str) -> tuple[None, None]:
    if in_dims[0] is None and in_dims[1] is not None:
        _count_choices(count, load.sum(in_dims[1]), group)
    else:
        for of_one in zip(_of_each(count, in_dims[0], info), _of_each(load, in_dims[1], info), strict=True):
            _count_choices(*of_one, group)
    return None, None


def _of_each(tensor: Tensor, dim: int | None, info: Any) -> Sequence[Tensor]:
    return [tensor] * info.batch_size if dim is None else tensor.unbind(dim)


class BalancedRouter(Router):
    """Base of routers whose choice can be balanced by a bias.

    With balance="bias" it has two persistent buffers: `balance_bias` (E,), always float32; and `balance_count` (E,),
    the choices that move the bias in the next training forward.

    **Arguments:**

    - `dim`: width of a token.
    - `num_experts`: number of experts E.
    - `balance`: "bias", "loss" or "none".
    - `balance_rule`: how the bias moves: "log", "sign" or "z-score" (see `RULES`); default "log".

    **Attributes:**

    - `balance_group`: process group over which counts are summed. Default None: only this process's choices count, or
      those of all processes of a DistributedDataParallel that does not broadcast buffers. If there are several
      processes and neither is the case, a warning says so once.

    **Raises:** ValueError for unknown values, and for a `balance_rule` without a bias.
    """

    balance_bias: Tensor | None
    balance_count: Tensor | None

    def __init__(self, dim: int, num_experts: int, balance: str, balance_rule: BalanceRule = "log"):
        super().__init__(dim, num_experts)
        if balance not in ("bias", "loss", "none"):
            raise ValueError(f'balance={balance!r}: accepted are "bias", "loss" and "none"')
        self.balance, self.balance_rule = balance, check_rule(balance_rule)
        if balance_rule != "log" and balance != "bias":
            raise ValueError(f'balance_rule={balance_rule!r}: only balance="bias" has a rule, got balance={balance!r}')
        self._balance_group = ""
        biased = balance == "bias"
        self.register_buffer("balance_bias", torch.zeros(num_experts, dtype=torch.float32) if biased else None)
        self.register_buffer("balance_count", torch.zeros(num_experts, dtype=torch.int64) if biased else None)
        self._counted = False

    @property
    def balance_group(self) -> torch.distributed.ProcessGroup | None:
        return _resolve_process_group(self._balance_group) if self._balance_group else None  # type: ignore[arg-type]

    @balance_group.setter
    def balance_group(self, group: torch.distributed.ProcessGroup | None) -> None:
        self._balance_group = "" if group is None else group.group_name  # a name can be copied and pickled

    @property
    def is_frozen(self) -> bool:
        """Whether all its parameters are frozen. The bias of a frozen router does not move."""
        return not any(parameter.requires_grad for parameter in self.parameters(recurse=False))

    @torch.no_grad()
    def reset_balance(self) -> None:
        """Sets biases and counts to 0."""
        for buffer in (self.balance_bias, self.balance_count):
            if buffer is not None:
                buffer.zero_()

    def is_counting(self) -> bool:
        """Whether this forward counts its choices: only a forward in training mode, with gradients, of a router that is
        not frozen. (The operators above exclude recomputes.)"""
        if self.balance_bias is None or not (self.training and torch.is_grad_enabled()):
            return False
        if self.is_frozen:
            return False
        if not torch.compiler.is_compiling() and not self._counted:
            self._counted = True
            if inside_backward():
                warnings.warn(
                    "the router sees only recomputes inside backward, not the forward, so it cannot count choices and "
                    "the experts stay unbalanced: use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
                    stacklevel=3,
                )
        return True

    def choice_bias(self, counting: bool) -> Float[Tensor, " E"] | None:
        """The bias to add to the logits for the choice; None: there is none. If `counting`, it is first moved by the
        counts of the last training forward."""
        moves = counting and self.balance_bias is not None
        return _moved_bias(self.balance_bias, self.balance_count, self.balance_rule) if moves else self.balance_bias

    def count_choices(self, load_E: Int[Tensor, " E"]) -> None:
        """Stores the counts of this forward's choices, which move the bias in the next training forward."""
        if self.balance_count is not None:
            _count_choices(self.balance_count, load_E, self._balance_group)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "BalancedRouter":
        bias = self.balance_bias
        super()._apply(fn, recurse)
        if self.balance_bias is not None and bias is not None and self.balance_bias.dtype != torch.float32:
            self.balance_bias = bias.to(self.balance_bias.device)
        return self
