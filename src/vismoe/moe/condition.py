"""Handing a mask or a context to routers deep inside a network whose blocks call `mlp(x)` and know of neither."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from .record import Recordable, layers_of
from .routers.balancing import inside_backward


@dataclass(frozen=True, eq=False)  # Compared by identity: tensors have no plain equality.
class Condition:
    """`mask` (B, S): False where a token is padding; `context`: whatever a router understands."""

    mask: Bool[Tensor, "B S"] | None
    context: Any


NOTHING = Condition(None, None)


class Conditions:
    """The conditions of one layer, with the thread that set each. A copy of a layer begins without any."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Condition]] = []
        self.last = NOTHING

    def current(self) -> Condition:
        """The innermost condition of this thread; in a recompute, that of the forward it repeats.

        **Raises:** RuntimeError where the condition of a recompute is not that of its forward.
        """
        if torch.compiler.is_compiling():
            return self.held[-1][1] if self.held else NOTHING
        # Backward may run in a thread of its own that set no condition: there, any thread's condition holds.
        backward, thread = inside_backward(), threading.get_ident()
        # Loops over a copy: meanwhile another thread may end its block and shift the list.
        conditions = [condition for owner, condition in self.held.copy() if backward or owner == thread]
        condition = conditions[-1] if conditions else NOTHING
        if backward and condition is not self.last:
            raise RuntimeError(
                "a recompute of activations finds another condition than its forward had: "
                "`with vismoe.condition(...)` must enclose backward too"
            )
        self.last = condition
        return condition

    def __reduce__(self) -> tuple[type["Conditions"], tuple[()]]:
        return Conditions, ()


class Conditioned(Recordable):
    """A layer that follows `vismoe.condition`."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions = Conditions()


@contextmanager
def condition(model: nn.Module, mask: Bool[Tensor, "B S"] | None = None, context: Any = None) -> Iterator[None]:
    """Hands `mask` and `context` to every MoE layer of `model` inside the block.

    The innermost of nested blocks holds. Under activation recompute the block must enclose backward.

    **Arguments:**

    - `model`: any network with `vismoe.MoE` layers.
    - `mask`: (B, S), False where a token is padding, which takes no part in routing, load and output; default: no
      padding.
    - `context`: any value, given to every router; default: none.

    **Raises:** ValueError for a context where a router's `forward` has no argument `context`.
    """
    entry = (threading.get_ident(), Condition(mask, context))
    layers = [layer for layer in layers_of(model).values() if isinstance(layer, Conditioned)]
    for router in [layer.get_submodule("router") for layer in layers] if context is not None else []:
        if "context" not in inspect.signature(router.forward).parameters:
            raise ValueError(
                f"a context was given, but {type(router).__name__} takes none: leave it out, or use a router "
                "whose forward has an argument `context`"
            )
    for layer in layers:
        layer.conditions.held.append(entry)
    try:
        yield
    finally:
        for layer in layers:
            layer.conditions.held.remove(entry)
