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


@dataclass(frozen=True, eq=False)  # Blocks are told apart by identity: tensors have no plain equality.
class Condition:
    """`mask` (B, S): False where a token is padding; `context`: whatever a router understands."""

    mask: Bool[Tensor, "B S"] | None
    context: Any


NOTHING = Condition(None, None)


class Conditions:
    """The conditions that hold for one layer, by the thread that set them. A copy of a layer begins without any."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Condition]] = []
        self.last = NOTHING

    def current(self) -> Condition:
        """The innermost condition of this thread; in a recompute, that of the forward it repeats.

        **Raises:** RuntimeError where a recompute finds another condition than its forward had.
        """
        if torch.compiler.is_compiling():
            return self.held[-1][1] if self.held else NOTHING
        # Backward may run in a thread of its own, which set nothing: what holds for anybody is what can be meant.
        backward, thread = inside_backward(), threading.get_ident()
        # Of a copy, made in one go: another thread may end its block meanwhile and shift the list under a loop.
        mine = [condition for owner, condition in self.held.copy() if backward or owner == thread]
        condition = mine[-1] if mine else NOTHING
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
    """A layer that obeys `vismoe.condition`."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions = Conditions()


@contextmanager
def condition(model: nn.Module, mask: Bool[Tensor, "B S"] | None = None, context: Any = None) -> Iterator[None]:
    """Hands `mask` and `context` to every MoE layer of `model` inside the block, whatever calls them.

    `mask` (B, S) keeps padding out of routing, load and output. `context` is given to every router. Of nested
    blocks the innermost holds. Under activation recompute the block must enclose backward.

    **Raises:** ValueError for a context where a router's `forward` has no argument `context`.
    """
    held = (threading.get_ident(), Condition(mask, context))
    layers = [layer for layer in layers_of(model).values() if isinstance(layer, Conditioned)]
    for router in [layer.get_submodule("router") for layer in layers] if context is not None else []:
        if "context" not in inspect.signature(router.forward).parameters:
            raise ValueError(
                f"a context was given, but {type(router).__name__} takes none: leave it out, or use a router "
                "whose forward has an argument `context`"
            )
    for layer in layers:
        layer.conditions.held.append(held)
    try:
        yield
    finally:
        for layer in layers:
            layer.conditions.held.remove(held)
