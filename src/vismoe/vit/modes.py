"""Changes a model inside a block, and restores its state afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vismoe.moe import Exchange, MoE, Product


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the whole `model` is in evaluation mode. Afterwards, also after an error, each of its modules is
    in the mode it was in: what was frozen in evaluation mode inside a training network stays so."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training  # not `train()`, which would also change the module's children


@contextmanager
def using_backend(model: nn.Module, product: Product | None = None, exchange: Exchange | None = None) -> Iterator[None]:
    """Inside the block the sparse layers of `model` use another product or exchange. Afterwards, also after an error,
    each has its own again.

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
