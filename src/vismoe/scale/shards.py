"""What each process keeps of a network's parameters, and what it sends of them: closed formulas of the plan that
`vismoe.parallelize` carries out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from vismoe.moe import MoE
from vismoe.moe.experts.stacked import stacked_parts
from vismoe.parallel.sharding import check_layout, groups_of, shard_dimension


@dataclass(frozen=True)
class Placement:
    """How a network is distributed, see `vismoe.parallelize`.

    - `devices`: number of processes; `ep`, `replicate`: those that share the experts of a layer, and copies of the
      sharded weights.
    """

    devices: int
    ep: int
    replicate: int = 1

    @property
    def shards(self) -> int:
        """Number of processes that a parameter which is not an expert's is divided over."""
        return self.devices // self.replicate

    @property
    def dp(self) -> int:
        """Number of processes that have the same experts."""
        return self.devices // self.ep


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP2 gathers in one message, and whose gradients it reduces in one. All sizes are those of one
    process's part in bytes, with FSDP2's padding.

    - `blocks`: number of the group of blocks that the parameters are in; None: of none, so they stay gathered during a
      step.
    - `shards`: number of processes that each parameter is divided over; `copies`: how many of these sets of processes
      there are. 0 shards: experts that stay where they are, and that FSDP2 does not know.
    - `stored`, `trained`: of all parameters, and of those that are trained, as they are stored.
    - `gathered`, `reduced`: of all parameters as they are gathered, of gradients as they are reduced.
    - `gradients`: of gradients as they are computed.
    """

    blocks: int | None
    shards: int
    copies: int
    stored: int
    trained: int
    gathered: int
    reduced: int
    gradients: int


@dataclass(frozen=True)
class Gathered:
    """What the processes send of parameters and gradients in a step, each of them, in bytes."""

    parameters: int
    gradients: int


def placements(model: nn.Module, devices: int, replicate: int = 1) -> list[Placement]:
    """All placements of a network on a number of devices, with `ep` from 1 upwards.

    **Raises:** ValueError if `replicate` does not divide the number of devices.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MoE)}
    check_layout(devices, 1, replicate, layers)
    found = []
    for ep in range(1, 1 + min([devices, *(layer.router.num_experts for layer in layers.values())])):
        try:
            check_layout(devices, ep, replicate, layers)
        except ValueError:
            continue
        found.append(Placement(devices, ep, replicate))
    return found


def groups(model: nn.Module, placement: Placement, policy: MixedPrecisionPolicy | None) -> list[Group]:
    """The groups of a network's parameters.

    **Arguments:**

    - `model`: the network, not distributed; on any device.
    - `placement`: how it is distributed.
    - `policy`: FSDP2's types; None: those of the parameters.

    **Raises:** ValueError for a parameter without dimensions, which FSDP2 cannot divide.
    """
    if scalars := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
        raise ValueError(f"{', '.join(scalars)}: parameters of shape () cannot be sharded: give them shape (1,)")
    apart = set()
    if placement.ep > 1:
        apart = {id(parameter) for parameter in _of_experts(model)}
    stay = placement.shards == placement.ep and placement.replicate == 1 and policy is None

    def gathered(parameter: nn.Parameter) -> int:
        if id(parameter) not in apart:
            return parameter.nbytes
        return 0 if stay else parameter.nbytes // placement.ep

    owners = {
        id(parameter): number
        for number, blocks in enumerate(groups_of(model, gathered))
        for block in blocks
        for parameter in block.parameters()
    }
    members: dict[tuple[int | None, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        members.setdefault((owners.get(id(parameter)), id(parameter) in apart), []).append(parameter)
    return [
        _group(blocks, parameters, placement, policy, of_experts, stay)
        for (blocks, of_experts), parameters in members.items()
    ]


def _of_experts(model: nn.Module) -> Iterator[nn.Parameter]:
    for layer in model.modules():
        if isinstance(layer, MoE):
            for part in stacked_parts(layer.experts):
                yield from part.parameters(recurse=False)


def _group(
    blocks: int | None,
    parameters: list[nn.Parameter],
    placement: Placement,
    policy: MixedPrecisionPolicy | None,
    apart: bool,
    stay: bool,
) -> Group:
    """A group. `apart`: whether the parameters are experts' of several processes; `stay`: whether these stay where they
    are."""
    ep = placement.ep if apart else 1
    shards, copies = placement.shards // ep, placement.replicate
    types = policy or MixedPrecisionPolicy()
    sizes = dict.fromkeys(("stored", "trained", "gathered", "reduced", "gradients"), 0)
    for parameter in parameters:
        number, computed = _part(parameter, ep, shards), types.param_dtype or parameter.dtype
        sizes["stored"] += number * parameter.element_size()
        sizes["gathered"] += number * computed.itemsize
        if parameter.requires_grad:
            sizes["trained"] += number * parameter.element_size()
            sizes["gradients"] += number * computed.itemsize
            sizes["reduced"] += number * (types.reduce_dtype or computed).itemsize
    if apart and stay:
        shards = 0
    return Group(blocks, shards, copies, **sizes)


def _part(parameter: Tensor, ep: int, shards: int) -> int:
    """Number of a parameter's elements in one process, with padding."""
    first, *others = parameter.shape
    size = torch.empty(first // ep, *others, device="meta")
    dim = shard_dimension(size, shards).dim
    return -(-size.shape[dim] // shards) * math.prod(size.shape[:dim] + size.shape[dim + 1 :])


def sent(some: list[Group]) -> Gathered:
    """What each process sends in a step: a gather sends its part to every other process, a reduction a part to every
    other; a sum over copies is a reduction and a gather of it."""
    parameters = gradients = 0.0
    for group in some:
        others = max(0, group.shards - 1)
        parameters += others * group.gathered * (1 if group.blocks is None else 2)
        gradients += others * group.reduced
        if group.shards:
            gradients += 2 * (group.copies - 1) / group.copies * group.reduced
    return Gathered(round(parameters), round(gradients))


def whole(some: list[Group]) -> int:
    """The most memory, about, that gathered parameters and unsharded gradients take at one time, in bytes: what is in
    no block, the group of blocks that is computed and the one that is gathered meanwhile, the gradients of a group, and
    a buffer in which they are reduced."""
    always = sum(group.shards * group.gathered for group in some if group.blocks is None)
    gathered: dict[int, int] = {}
    gradients: dict[int, int] = {}
    for group in some:
        if (blocks := group.blocks) is not None:
            gathered[blocks] = gathered.get(blocks, 0) + group.shards * group.gathered
            gradients[blocks] = gradients.get(blocks, 0) + group.shards * (group.gradients + group.reduced)
    return always + sum(sorted(gathered.values())[-2:]) + max(gradients.values(), default=0)
