"""Estimates what training a network on many devices takes: memory, and bytes sent, for every way to distribute it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from vismoe.files.amounts import parse_bytes
from vismoe.moe import BalancedRouter, MoE
from vismoe.vit import cost
from vismoe.weights import create_model, data_config, open_source, parse_source

from .profile import LayerRows, Profile, profile
from .shards import Group, Placement, groups, placements, sent, whole

COUNT = 8
"""Bytes of a count of rows or choices, an int64."""


MOST = 1 << 24
"""Largest number of devices, and of images of a device."""


@dataclass(frozen=True)
class Memory:
    """Memory of one device, in bytes.

    - `parameters`, `gradients`, `optimizer`: exact, with the padding of shards.
    - `gathered`: an estimate of gathered parameters and of gradients before they are reduced.
    - `activations`: an estimate of what is kept for backward.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """The sum; an upper bound of the parts, which are not all at their largest at the same time."""
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends to others in a step, forward and backward; it receives as many.

    - `exchange`: by sparse layer: tokens and gradients sent to experts and back, and the counts of the ragged exchange.
    - `parameters`: gathered weights; `gradients`: reduced gradients.
    - `balancing`: sums of the experts' loads.
    """

    exchange: dict[str, int]
    parameters: int
    gradients: int
    balancing: int

    @property
    def total(self) -> int:
        return sum(self.exchange.values()) + self.parameters + self.gradients + self.balancing


@dataclass(frozen=True)
class Layout:
    """One way to distribute a network.

    - `dp`: number of devices that have the same experts; `ep`: number of devices that share the experts of a layer.
    - `memory`, `traffic`: see there.
    - `largest_batch`: about how many images a device can have in a step; 0: not even one fits.
    - `stopped_by`: what speaks against it: "memory" if it does not fit, "traffic" if another layout that fits sends
      less, "" if it is the best.
    """

    dp: int
    ep: int
    memory: Memory
    traffic: Traffic
    largest_batch: int
    stopped_by: Literal["", "memory", "traffic"]


@dataclass(frozen=True)
class Estimate:
    """What training on a number of devices takes.

    - `devices`, `batch`: number of devices, and images of each in a step.
    - `limit`: memory of a device, in bytes.
    - `parameters`: number of parameters of the network.
    - `macs`: MACs of one device in a step: forward, and twice as many backward.
    - `layouts`: all ways to distribute the network, by `ep`.
    """

    devices: int
    batch: int
    limit: int
    parameters: int
    macs: int
    layouts: list[Layout]

    @property
    def best(self) -> Layout | None:
        """The layout that sends least of those that fit; None if none fits."""
        return next((layout for layout in self.layouts if not layout.stopped_by), None)


def estimate(
    model: nn.Module | str,
    devices: int,
    batch: int = 8,
    memory: int | str = "80GiB",
    static: bool = False,
    recompute: bool = False,
    replicate: int = 1,
    mixed_precision: MixedPrecisionPolicy | None = None,
    optimizer_states: int = 2,
    **overrides: Any,
) -> Estimate:
    """Estimates memory and traffic of a training that `vismoe.parallelize` distributes, without any of the devices. The
    network is not allocated.

    **Arguments:**

    - `model`: a network, for example on the meta device; or the name of a preset or of timm's (timm:NAME), a run or
      model folder.
    - `devices`: number of devices, each with one process.
    - `batch`: images per device and step; default 8.
    - `memory`: memory of a device, in bytes or as text; default "80GiB".
    - `static`, `replicate`, `mixed_precision`: as for `vismoe.parallelize`.
    - `recompute`: whether each block is recomputed in backward (activation checkpointing); default False.
    - `optimizer_states`: number of tensors that the optimiser keeps for each parameter: 2 for AdamW, 1 for SGD with
      momentum; default 2.
    - `overrides`: of a preset, as for `vismoe.create_model`.

    **Returns:** an `Estimate`.

    **Raises:** ValueError for numbers out of range, for a network that is distributed already, and as
    `vismoe.create_model`.
    """
    accepted = {"devices": (devices, 1), "batch": (batch, 1), "optimizer_states": (optimizer_states, 0)}
    for name, (number, least) in accepted.items():
        if not least <= number <= MOST:
            raise ValueError(f"{name}={number}: accepted are whole numbers from {least} to {MOST:,}")
    limit = parse_bytes(memory, "memory")
    network = _open(model, overrides)
    if any(isinstance(module, FSDPModule) for module in network.modules()):
        raise ValueError("the network is distributed already: estimate a new one")
    every = placements(network, devices, replicate)
    image = data_config(network)["input_size"]
    dtype = None if mixed_precision is None else mixed_precision.param_dtype
    seen = profile(network, batch, image, static, dtype)
    step = _Step(network, batch, static, recompute, optimizer_states, seen)
    drafts = [step.layout(placement, groups(network, placement, mixed_precision), limit) for placement in every]
    passes = 4 if recompute else 3
    macs = passes * batch * cost(network, image).macs
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Estimate(devices, batch, limit, parameters, macs, _compared(drafts, limit))


def _open(model: nn.Module | str, overrides: dict[str, Any]) -> nn.Module:
    """The network, without weights where only its architecture is named."""
    if isinstance(model, nn.Module):
        if overrides:
            raise ValueError(f"{', '.join(overrides)}: accepted only with the name of a preset, not with a network")
        return model
    source = parse_source(model)
    if source.kind in ("preset", "published", "timm"):
        try:
            with torch.device("meta"):
                return create_model(source.text, **overrides)
        except (ArithmeticError, AssertionError, RuntimeError) as error:
            given = ", ".join(f"{name}={value}" for name, value in overrides.items())
            raise ValueError(f"{source} cannot be built with {given}: {str(error).splitlines()[0]}") from error
    if overrides:
        raise ValueError(f"{', '.join(overrides)}: accepted only with the name of a preset, not with {source}")
    return open_source(source)


@dataclass(frozen=True)
class _Step:
    """What a step takes, whatever the layout."""

    network: nn.Module
    batch: int
    static: bool
    recompute: bool
    optimizer_states: int
    seen: Profile

    def layout(self, placement: Placement, some: list[Group], limit: int) -> Layout:
        """A layout, not yet compared with others."""
        memory = self._memory(some)
        each, left = memory.activations / self.batch, limit - (memory.total - memory.activations)
        largest = max(0, int(left // each)) if each else 0
        return Layout(placement.dp, placement.ep, memory, self._traffic(placement, some), largest, "")

    def _memory(self, some: list[Group]) -> Memory:
        trained = sum(group.trained for group in some)
        buffers = sum(buffer.nbytes for buffer in self.network.buffers())
        activations = self.seen.recomputed if self.recompute else self.seen.saved
        return Memory(
            parameters=sum(group.stored for group in some) + buffers,
            gradients=trained,
            optimizer=self.optimizer_states * trained,
            gathered=whole(some),
            activations=activations,
        )

    def _traffic(self, placement: Placement, some: list[Group]) -> Traffic:
        of_weights = sent(some)
        exchange = {
            name: round(sum(self._exchanged(rows, placement.ep) for rows in calls))
            for name, calls in self.seen.layers.items()
        }
        summed = sum(
            COUNT * layer.router.num_experts * len(self.seen.layers[name])
            for name, layer in self.network.named_modules()
            if isinstance(layer, MoE) and _counts(layer.router)
        )
        balancing = round(2 * (placement.devices - 1) / placement.devices * summed)
        return Traffic(exchange, of_weights.parameters, of_weights.gradients, balancing)

    def _exchanged(self, rows: LayerRows, ep: int) -> float:
        """Bytes that leave a device for one call of a layer: to experts and back, forward and backward."""
        forwards = 2 if self.recompute else 1
        there_and_back = (rows.slots if self.static else rows.live) * (rows.bytes_there + rows.bytes_back)
        counts = 0 if self.static else forwards * COUNT * rows.experts
        return (ep - 1) / ep * ((forwards + 1) * there_and_back + counts)


def _counts(router: nn.Module) -> bool:
    return isinstance(router, BalancedRouter) and router.balance_bias is not None and not router.is_frozen


def _compared(drafts: list[Layout], limit: int) -> list[Layout]:
    """The layouts, each with what speaks against it."""
    fitting = [layout for layout in drafts if layout.memory.total <= limit]
    best = min(fitting, key=lambda layout: layout.traffic.total, default=None)
    return [
        layout if layout is best else replace(layout, stopped_by="traffic" if layout in fitting else "memory")
        for layout in drafts
    ]
