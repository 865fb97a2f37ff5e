"""Distributes a network over processes: experts over an axis of its own, everything else by PyTorch's FSDP2."""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import (  # of fully_shard's documentation, under no public name
    FSDPMeshInfo,
    HSDPMeshInfo,
    ShardPlacementResult,
)
from torch.distributed.tensor import Shard, distribute_tensor

from vismoe.moe import BalancedRouter, LocalExchange, MoE
from vismoe.moe.experts.stacked import stacked_parts
from vismoe.moe.resident import local

from .all_to_all import AllToAllExchange
from .mesh import backend_devices, join_processes

GROUP = 25 << 20
"""Bytes of parameters that FSDP2 gathers in one message, at least: that of a bucket of DistributedDataParallel."""


def parallelize(
    model: nn.Module,
    ep: int = 1,
    replicate: int = 1,
    static: bool = False,
    mixed_precision: MixedPrecisionPolicy | None = None,
) -> nn.Module:
    """Distributes a network over all processes, in place. Call it before the optimiser is made.

    Experts are distributed over `ep` processes, and their tokens are sent there and back. All other parameters are
    sharded over all processes by PyTorch's FSDP2 (`fully_shard`), block by block, several small blocks together; each
    expert's parameters over the processes that have the same experts. Every process trains with its share of a batch.
    All processes get the weights and buffers of process 0, unless the network is on the meta device: then call
    `to_empty`, and load weights.

    **Arguments:**

    - `model`: any network; `vismoe.MoE` layers in it are distributed.
    - `ep`: number of processes that share the experts of a layer; it divides the number of processes and that of the
      experts. Default 1: every process has all experts.
    - `replicate`: number of copies of the sharded weights, as in hybrid sharding; `replicate · ep` divides the number
      of processes. Default 1.
    - `static`: whether shapes are static in the exchange, see `vismoe.parallel.AllToAllExchange`; default False.
    - `mixed_precision`: FSDP2's policy; default None: all in the parameters' type.

    **Returns:** `model`.

    **Raises:** RuntimeError without processes that `torchrun` started or `torch.distributed` was initialised with;
    ValueError for numbers that do not divide, and a network that is distributed already.
    """
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise RuntimeError(
                "there are no processes to distribute the network over: start the program with torchrun, or call "
                "torch.distributed.init_process_group first"
            )
        join_processes()
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise ValueError("the network is distributed already: parallelize a new one")
    size = dist.get_world_size()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    check_layout(size, ep, replicate, layers)
    device = _device_type()
    shards = size // replicate
    whole = init_device_mesh(device, (replicate, shards), mesh_dim_names=("replicate", "data"))
    apart = init_device_mesh(device, (replicate, shards // ep, ep), mesh_dim_names=("replicate", "data", "expert"))
    _broadcast(model)
    for router in model.modules():
        if isinstance(router, BalancedRouter):
            router.balance_group = dist.group.WORLD
    ignored: set[nn.Parameter] = set()
    of_experts: set[nn.Parameter] = set()
    if ep > 1:
        group = apart["expert"].get_group().group_name
        for layer in layers.values():
            of_experts |= _distribute(layer.experts, apart["expert"])
            layer.exchange = AllToAllExchange(layer.exchange.bfloat16, group, ep, static)
    info = _mesh_info(apart, replicate)
    if shards == ep and replicate == 1 and mixed_precision is None:  # FSDP would only copy them
        ignored, of_experts = of_experts, set()

    def placement(parameter: nn.Parameter) -> ShardPlacementResult | Shard:
        if parameter in of_experts:
            return ShardPlacementResult(shard_dimension(local(parameter), shards // ep), info)
        return shard_dimension(parameter, shards)

    options: dict[str, Any] = {"mesh": _axes(whole, replicate), "shard_placement_fn": placement}
    if mixed_precision is not None:
        options["mp_policy"] = mixed_precision
    for blocks in groups_of(model, lambda parameter: 0 if parameter in ignored else local(parameter).nbytes):
        fully_shard(blocks, ignored_params=ignored, **options)
    fully_shard(model, ignored_params=ignored, **options)
    return model


def check_layout(size: int, ep: int, replicate: int, layers: dict[str, MoE]) -> None:
    """Raises ValueError for numbers of processes that do not divide."""
    for name, number in (("ep", ep), ("replicate", replicate)):
        if number < 1:
            raise ValueError(f"{name}={number}: accepted are numbers of processes ≥ 1")
    if size % (replicate * ep):
        given = f"replicate={replicate}" if ep == 1 else f"ep={ep}, replicate={replicate}"
        raise ValueError(f"{given}: {replicate * ep} must divide the number of processes, which is {size}")
    if ep > 1 and not layers:
        raise ValueError(f"ep={ep}: the network has no sparse layer whose experts could be distributed")
    for name, layer in layers.items():
        experts = layer.router.num_experts
        if experts % ep:
            accepted = ", ".join(str(number) for number in range(1, experts + 1) if experts % number == 0)
            raise ValueError(f"ep={ep} does not divide the {experts} experts of {name}: accepted are {accepted}")
        if ep == 1:
            continue
        if type(layer.exchange) is not LocalExchange:
            raise ValueError(f"{name} has a {type(layer.exchange).__name__} already: expected LocalExchange")
        stacked = {id(p) for part in stacked_parts(layer.experts) for p in part.parameters(recurse=False)}
        shared = [n for n, p in layer.experts.named_parameters() if id(p) not in stacked and p.requires_grad]
        if shared:
            raise ValueError(
                f"ep={ep}: all experts of {name} share {', '.join(shared)}, which are trained, but each process would "
                "train them by its own experts' tokens alone: freeze them, or use ep=1"
            )


def _device_type() -> str:
    """The type of the device whose tensors the processes exchange."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    reached = backend_devices(dist.get_backend_config())
    return accelerator.type if accelerator is not None and accelerator.type in reached else "cpu"


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Gives all processes the weights and buffers of process 0, on the device of the process. Parameters become
    contiguous, which FSDP requires."""
    model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(_device_type()))
    for parameter in model.parameters():
        if not parameter.is_contiguous():  # of a convolution in channels_last
            parameter.data = parameter.contiguous()
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if not tensor.is_meta:
            dist.broadcast(tensor.data, 0)


def _distribute(experts: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Leaves each process its experts of a layer. Returns the new parameters, which are DTensors."""
    made = set()
    for part in stacked_parts(experts):
        for name, whole in list(part.named_parameters(recurse=False)):
            sharded = distribute_tensor(whole.detach(), mesh, [Shard(0)], src_data_rank=None)
            parameter = nn.Parameter(sharded, requires_grad=whole.requires_grad)
            setattr(part, name, parameter)
            made.add(parameter)
    return made


def shard_dimension(parameter: Tensor, processes: int) -> Shard:
    """The first dimension that the number of processes divides. If there is none the outermost: FSDP pads it."""
    fits = (dim for dim, size in enumerate(parameter.shape) if size and size % processes == 0)
    return Shard(next(fits, 0))


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists of modules of one class, such as the blocks of a transformer."""
    for child in model.children():
        entries = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        if len(entries) > 1 and len({type(entry) for entry in entries}) == 1:
            yield from entries
        else:
            yield from blocks_of(child)


def groups_of(model: nn.Module, size: Callable[[nn.Parameter], int]) -> list[list[nn.Module]]:
    """The blocks that FSDP2 gathers together, apart from the rest of the network: as many, one after the other, as it
    takes to have GROUP bytes, because small messages take long for their size. None if all have less.

    **Arguments:**

    - `model`: the network.
    - `size`: number of bytes that are gathered of a parameter.
    """
    groups: list[list[nn.Module]] = []
    total = GROUP
    for block in blocks_of(model):
        if total >= GROUP:
            groups.append([])
            total = 0
        groups[-1].append(block)
        total += sum(map(size, block.parameters()))
    return groups if len(groups) > 1 or total >= GROUP else []


def _axes(mesh: DeviceMesh, replicate: int) -> DeviceMesh:
    """The axes over which FSDP shards, and replicates if there are several copies."""
    return mesh["replicate", "data"] if replicate > 1 else mesh["data"]


def _mesh_info(mesh: DeviceMesh, replicate: int) -> FSDPMeshInfo:
    axes = _axes(mesh, replicate)
    return HSDPMeshInfo(axes, shard_mesh_dim=1, replicate_mesh_dim=0) if replicate > 1 else FSDPMeshInfo(axes, 0)
