"""Passes a mask or a context to layers deep inside a network, whose blocks call them without."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from .record import Recordable, unwrap
from .routers.balancing import inside_backward


@dataclass(frozen=True, eq=False)  # Compared by identity: tensors have no plain equality.
class Condition:
    """`mask` (B, S): False where a token is padding; `context`: any value that the router accepts; `pixels` (B, H, W):
    the mask of pixels that `mask` was made of."""

    mask: Bool[Tensor, "B S"] | None
    context: Any
    pixels: Bool[Tensor, "B H W"] | None = None


NOTHING = Condition(None, None)


class Conditions:
    """The open conditions of one module, each with the thread that set it. A copy of a layer has none."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Condition]] = []
        self.last = NOTHING

    def current(self) -> Condition:
        """The innermost condition of this thread; in an activation recompute, the condition of the first forward.

        **Raises:** RuntimeError if a recompute has another condition than its forward.
        """
        if torch.compiler.is_compiling():
            return self.held[-1][1] if self.held else NOTHING
        if not self.held and self.last is NOTHING:  # the usual case, quickly
            return NOTHING
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
    """A sparse layer to which `vismoe.condition` can pass a mask and a context. Any other module with an attribute
    `conditions` gets the mask too. One that knows which tokens a mask of pixels leaves has a method `token_mask`."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions = Conditions()


@contextmanager
def condition(
    model: nn.Module, mask: Bool[Tensor, "B S"] | Bool[Tensor, "B H W"] | None = None, context: Any = None
) -> Iterator[None]:
    """Passes `mask` and `context` to every MoE layer of `model` inside a `with` block, and the mask also to the patch
    embedding, the attention and the pooling of vismoe's networks.

    In vismoe's networks no padding then changes an image's outputs: padded pixels are read as 0, no token attends to a
    padded token, pooling leaves it out, and its features are 0. `vismoe.vit.accept_masks` lets networks of timm's read
    masks. In other networks a mask reaches the MoE layers alone, where padding is not routed, not counted as load, and
    has the output 0: also pass the mask to their attention.

    If blocks are nested, the innermost one counts. With activation recompute, the block must enclose backward too.

    **Arguments:**

    - `model`: any network with `vismoe.MoE` layers, or a network of vismoe's.
    - `mask`: False for padding; default None: no padding.
        - (B, H, W) bool, of pixels, for a network of vismoe's. A patch with a pixel of the image is no padding.
        - (B, S) bool, of tokens, with those before the patches (class token, registers).
    - `context`: any value, passed to every router; default None: nothing.

    **Raises:** ValueError if a context is given and the `forward` of a router has no argument `context`; if a mask of
    pixels is given and not exactly one network in `model` can read it.
    """
    modules: list[Any] = [
        module for module in unwrap(model).modules() if isinstance(getattr(module, "conditions", None), Conditions)
    ]
    routers = [layer.get_submodule("router") for layer in modules if isinstance(layer, Conditioned)]
    for router in routers if context is not None else []:
        if "context" not in inspect.signature(router.forward).parameters:
            raise ValueError(
                f"a context was given, but {type(router).__name__} does not accept one: leave it out, or use a router "
                "whose forward has an argument `context`"
            )
    pixels = mask if mask is not None and mask.ndim == 3 else None
    tokens = mask if pixels is None else _token_mask(modules, pixels)
    # Compilers cannot trace the number of the thread, and a compiled forward reads all conditions.
    compiled = torch.compiler.is_compiling()
    entry = (0 if compiled else threading.get_ident(), Condition(tokens, context, pixels))
    for module in modules:
        module.conditions.held.append(entry)
    try:
        yield
    finally:
        for module in modules:
            if compiled:
                module.conditions.held.pop()
            else:
                module.conditions.held.remove(entry)


def _token_mask(modules: list[Any], pixels: Bool[Tensor, "B H W"]) -> Bool[Tensor, "B S"]:
    readers = [module for module in modules if hasattr(module, "token_mask")]
    if len(readers) != 1:
        raise ValueError(
            f"mask of shape {tuple(pixels.shape)}, images × height × width, for a model with {len(readers)} networks "
            "that can read it: expected one network of vismoe's, or one of timm's with vismoe.vit.accept_masks (of "
            "several, one condition each); or give a mask of images × tokens"
        )
    if pixels.dtype != torch.bool:
        raise ValueError(f"mask of type {pixels.dtype}: expected torch.bool, False for padding")
    tokens: Tensor = readers[0].token_mask(pixels)
    return tokens
