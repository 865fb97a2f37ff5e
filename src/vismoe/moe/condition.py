"""Passes a mask or a context to routers deep inside a network, whose blocks call `mlp(x)` without them."""

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
    """`mask` (B, S): False where a token is padding; `context`: any value that the router accepts."""

    mask: Bool[Tensor, "B S"] | None
    context: Any


NOTHING = Condition(None, None)


class Conditions:
    """The open conditions of one layer, each with the thread that set it. A copy of a layer has none."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Condition]] = []
        self.last = NOTHING

    def current(self) -> Condition:
        """The innermost condition of this thread; in an activation recompute, the condition of the first forward.

        **Raises:** RuntimeError if a recompute has another condition than its forward.
        """
        if torch.compiler.is_compiling():
            return self.held[-1][1] if self.held else NOTHING
        # Backward may run in another thread, which set no condition: there, the conditions of all threads count.
        backward, thread = inside_backward(), threading.get_ident()
        # Loops over a copy, because another thread may remove its condition meanwhile.
        conditions = [condition for owner, condition in self.held.copy() if backward or owner == thread]
        condition = conditions[-1] if conditions else NOTHING
        if backward and condition is not self.last:
            raise RuntimeError(
                "an activation recompute has another condition than its forward: "
                "`with vismoe.condition(...)` must enclose backward too"
            )
        self.last = condition
        return condition

    def __reduce__(self) -> tuple[type["Conditions"], tuple[()]]:
        return Conditions, ()


class Conditioned(Recordable):
    """A layer to which `vismoe.condition` can pass a mask and a context."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions = Conditions()


@contextmanager
def condition(model: nn.Module, mask: Bool[Tensor, "B S"] | None = None, context: Any = None) -> Iterator[None]:
    """Passes `mask` and `context` to every MoE layer of `model` inside a `with` block.

    If blocks are nested, the innermost one counts. With activation recompute, the block must enclose backward too.

    **Arguments:**

    - `model`: any network with `vismoe.MoE` layers.
    - `mask`: (B, S) bool, False where a token is padding; padding is not routed, not counted as load, and its output is
      0; default None: no padding.
    - `context`: any value, passed to every router; default None: nothing.

    **Raises:** ValueError if a context is given and the `forward` of a router has no argument `context`.
    """
    entry = (threading.get_ident(), Condition(mask, context))
    layers = [layer for layer in layers_of(model).values() if isinstance(layer, Conditioned)]
    for router in [layer.get_submodule("router") for layer in layers] if context is not None else []:
        if "context" not in inspect.signature(router.forward).parameters:
            raise ValueError(
                f"a context was given, but {type(router).__name__} does not accept one: leave it out, or use a router "
                "whose forward has an argument `context`"
            )
    for layer in layers:
        layer.conditions.held.append(entry)
    try:
        yield
    finally:
        for layer in layers:
            layer.conditions.held.remove(entry)
