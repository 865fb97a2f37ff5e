"""Changes a model inside a `with` block, and restores its state afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import nn

from vismoe.moe import Exchange, MoE, Product

MOST_TOKENS = 800
"""Number of tokens up to which `unfused_attention` replaces the fused function. (On a CPU in bfloat16, the fused one
took 1.3 times as long with 769 tokens, 0.75 times with 1,152.)"""


@dataclass
class _OpenContexts:
    """The open contexts of `evaluating` for one model: their number, and the modes of its modules before the first."""

    number: int = 0
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list)


_CONTEXTS: WeakKeyDictionary[nn.Module, _OpenContexts] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in evaluation mode. Afterwards, also after an error, each module gets its own mode
    back, so modules that are kept in evaluation mode while the network trains stay in it. Contexts in several threads
    may overlap: the last one that ends restores the modes."""
    with _LOCK:
        contexts = _CONTEXTS.setdefault(model, _OpenContexts())
        if not contexts.number:
            contexts.modes = [(module, module.training) for module in model.modules()]
        contexts.number += 1
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            contexts.number -= 1
            if not contexts.number:
                del _CONTEXTS[model]
                for module, training in contexts.modes:
                    module.training = training  # not `train()`, which would also change the module's children


@contextmanager
def using_backend(model: nn.Module, product: Product | None = None, exchange: Exchange | None = None) -> Iterator[None]:
    """Context in which the sparse layers of `model` use another product or exchange. Afterwards, also after an error,
    each layer gets its own back.

    **Arguments:**

    - `model`: any network.
    - `product`: how rows are multiplied by their experts' weights, such as `vismoe.moe.padded`; default None: each
      layer's own.
    - `exchange`: where rows go; default None: each layer's own.
    """
    layers = [(layer, layer.product, layer.exchange) for layer in model.modules() if isinstance(layer, MoE)]
    try:
        for layer, _, _ in layers:
            layer.product = layer.product if product is None else product
            layer.exchange = layer.exchange if exchange is None else exchange
        yield
    finally:
        for layer, layer_product, layer_exchange in layers:
            layer.product, layer.exchange = layer_product, layer_exchange


@contextmanager
def unfused_attention(model: nn.Module) -> Iterator[None]:
    """Context in which timm's attention modules with at most `MOST_TOKENS` tokens compute attention step by step. On a
    CPU in bfloat16, the backward pass of PyTorch's fused function takes 2 to 8 times as long with 64 to 200 tokens
    (PyTorch 2.14). Afterwards, also after an error, each module does again what it did.

    **Arguments:**

    - `model`: any network.
    """

    def choose(attention: Any, inputs: tuple[Any, ...]) -> None:
        attention.fused_attn = inputs[0].shape[1] > MOST_TOKENS

    modules: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, Attention | AttentionRope | EvaAttention) and module.fused_attn
    ]
    hooks = [module.register_forward_pre_hook(choose) for module in modules]
    try:
        yield
    finally:
        for module, hook in zip(modules, hooks, strict=True):
            hook.remove()
            module.fused_attn = True
