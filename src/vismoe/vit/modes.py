"""Changes a model inside a `with` block, and restores its state afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from vismoe.moe import Exchange, MoE, Product


@dataclass
class _Borrowed:
    """A model inside `evaluating`: the number of open `with` blocks, and its modules' modes before the first."""

    blocks: int = 0
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list)


_BORROWED: WeakKeyDictionary[nn.Module, _Borrowed] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in evaluation mode. Afterwards, also after an error, each module gets its own mode
    back, so modules that are kept in evaluation mode while the network trains stay in it. Contexts in several threads
    may overlap: the last one that ends restores the modes."""
    with _LOCK:
        borrowed = _BORROWED.setdefault(model, _Borrowed())
        if not borrowed.blocks:
            borrowed.modes = [(module, module.training) for module in model.modules()]
        borrowed.blocks += 1
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            borrowed.blocks -= 1
            if not borrowed.blocks:
                del _BORROWED[model]
                for module, training in borrowed.modes:
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
