"""Balances the experts of a network whose weights were changed after training, such as an EMA."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .record import layers_of, record
from .routers.balancing import BalancedRouter, move_bias


def biased_routers(model: nn.Module) -> dict[str, BalancedRouter]:
    """The routers of `model` with a balancing bias, by the names of their layers."""
    routers = {name: layer.router for name, layer in layers_of(model).items()}
    return {
        name: router
        for name, router in routers.items()
        if isinstance(router, BalancedRouter) and router.balance_bias is not None
    }


@torch.no_grad()
def rebalance(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Adjusts the balancing biases of a network to the loads that it has on some batches. Nothing else changes.

    An average of weights (EMA) routes tokens differently from the weights that it averages, so the averaged biases do
    not fit: in short runs the busiest expert had 3.6 times the mean load, and 1.05 times after this function
    (`benchmarks/average_loads.py`). Weights that were merged, pruned or edited need it too.

    Each batch moves the biases once. The result is the mean of the biases over the second half of the batches, because
    the bias after a single batch follows the images in it.

    **Arguments:**

    - `model`: a network in evaluation mode, changed in place.
    - `batches`: inputs of the network; 32 batches of training images are enough.
    - `forward`: (model, batch) -> anything, runs the network; default: `model(batch)`.
    - `all_reduce`: sums a tensor over the processes that train this network; default: one process.
    - `skip`: names of layers whose biases are not changed; default: none.

    **Raises:** ValueError for a network in training mode.
    """
    if model.training:
        raise ValueError("rebalance needs the network in evaluation mode: call model.eval() first")
    routers = {name: router for name, router in biased_routers(model).items() if name not in skip}
    if not routers:
        return
    biases: dict[str, list[Tensor]] = {name: [] for name in routers}
    for batch in batches:
        with record(model) as routing:
            model(batch) if forward is None else forward(model, batch)
        for name, router in routers.items():
            loads = [call.load for call in routing.layers[name]]
            if loads:
                load = torch.stack(loads).sum(0)
                load = load if all_reduce is None else all_reduce(load)
                bias = router.balance_bias
                assert bias is not None
                bias.copy_(move_bias(bias, load, router.balance_rule))
                biases[name].append(bias.clone())
    for name, router in routers.items():
        if (moved := biases[name]) and router.balance_bias is not None:
            router.balance_bias.copy_(torch.stack(moved[len(moved) // 2 :]).mean(0))


@contextmanager
def keeping_balance(model: nn.Module) -> Iterator[None]:
    """Context that restores the balancing biases of `model` at its end."""
    biases = [router.balance_bias for router in biased_routers(model).values() if router.balance_bias is not None]
    saved = [bias.clone() for bias in biases]
    try:
        yield
    finally:
        for bias, value in zip(biases, saved, strict=True):
            bias.copy_(value)
