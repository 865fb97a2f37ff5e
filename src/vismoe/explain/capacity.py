"""Sets the capacity of a network's sparse layers, and restores it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vismoe.moe import ImageRouter, MoE
from vismoe.moe.routers.capacity import check_factor

FIELDS = ("eval_capacity_factor", "capacity_multiple_of", "capacity_rounding", "batch_priority")
"""The attributes of a router that decide its capacity at evaluation."""


def capacity_routers(model: nn.Module) -> list[Any]:
    """The routers whose capacity can be set: token choice and expert choice. `ImageRouter` has none: it drops no
    token."""
    routers: list[Any] = [layer.router for layer in model.modules() if isinstance(layer, MoE)]
    return [each for each in routers if hasattr(each, "eval_capacity_factor") and not isinstance(each, ImageRouter)]


def has_capacity(model: nn.Module) -> bool:
    """Whether `using_capacity` can set the capacity of a network."""
    return bool(capacity_routers(model))


@contextmanager
def using_capacity(model: nn.Module, capacity: float | int | None, priority: bool = True) -> Iterator[None]:
    """Context in which every sparse layer of `model` has another capacity at evaluation. Afterwards, also after an
    error, each router gets its own back.

    An expert accepts tokens · k · factor / E tokens of a group, rounded up to a whole number. It is not rounded up to a
    multiple, as a router's own capacity may be, so that a small factor has an effect on a small image.

    **Arguments:**

    - `model`: any network; no other thread may run it meanwhile.
    - `capacity`: capacity factor, a positive number; None: nothing is changed.
    - `priority`: whether tokens with larger gates claim capacity first (Batch Priority Routing), not earlier tokens;
      default True. In expert choice, experts always choose by gate.

    **Raises:** ValueError for another capacity, and for a network without a router whose capacity can be set.
    """
    if capacity is None:
        yield
        return
    check_factor("capacity", capacity)
    routers = capacity_routers(model)
    if not routers:
        raise ValueError(
            f"capacity={capacity}: this network has no sparse layer with a capacity (dense networks, and the routers "
            "image, soft, hash and random, have none): leave the capacity out"
        )
    values = {"eval_capacity_factor": capacity, "capacity_multiple_of": 1, "capacity_rounding": "ceil"}
    values["batch_priority"] = priority
    before = [{name: getattr(router, name) for name in FIELDS if hasattr(router, name)} for router in routers]
    try:
        for router, own in zip(routers, before, strict=True):
            for name in own:
                setattr(router, name, values[name])
        yield
    finally:
        for router, own in zip(routers, before, strict=True):
            for name, value in own.items():
                setattr(router, name, value)
