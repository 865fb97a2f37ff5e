"""Handing a mask or a context to routers deep inside a network whose blocks call `mlp(x)` and know of neither."""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .balancing import inside_backward


@dataclass(frozen=True, eq=False)  # Blocks are told apart by identity: tensors have no plain equality.
class Condition:
    """`mask` (B, S): False where a token is padding; `context`: whatever a router understands."""

    mask: Bool[Tensor, "B S"] | None
    context: Any


class Conditions:
    """The conditions that hold for one layer, by the thread that set them. A copy of a layer begins without any."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Condition]] = []
        self.last: Condition | None = None

    def current(self) -> Condition | None:
        """The innermost condition of this thread; in a recompute, that of the forward it repeats.

        **Raises:** RuntimeError where a recompute finds another condition than its forward had.
        """
        if torch.compiler.is_compiling():
            return self.held[-1][1] if self.held else None
        # Backward may run in a thread of its own, which set nothing: what holds for anybody is what can be meant.
        backward, thread = inside_backward(), threading.get_ident()
        # Of a copy, made in one go: another thread may end its block meanwhile and shift the list under a loop.
        mine = [condition for owner, condition in self.held.copy() if backward or owner == thread]
        condition = mine[-1] if mine else None
        if backward and condition is not self.last:
            raise RuntimeError(
                "a recompute of activations finds another condition than its forward had: "
                "`with vismoe.condition(...)` must enclose backward too"
            )
        self.last = condition
        return condition

    def __deepcopy__(self, memo: object) -> "Conditions":
        return Conditions()

    def __reduce__(self) -> tuple[type["Conditions"], tuple[()]]:
        return Conditions, ()
