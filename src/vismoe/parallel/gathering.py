"""The parts of distributed tensors: where this process's part lies, and the whole tensors in the main process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

Part = tuple[slice, ...]


def is_distributed(model: nn.Module) -> bool:
    """Whether a network is distributed over processes, by `vismoe.parallelize` or by FSDP2."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def part_of(tensor: DTensor) -> Part:
    """Which part of the whole tensor this process has: one slice for each dimension."""
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))


@torch.no_grad()
def gather_to_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers distributed tensors in process 0, one after the other: no other process has more than its own parts. All
    processes must call it.

    **Arguments:**

    - `tensors`: tensors by name, the same names in all processes. Those that are not distributed are process 0's.

    **Returns:** in process 0 the whole tensors, the distributed ones on the CPU; in other processes no tensors.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    parts = [part_of(tensor) if isinstance(tensor, DTensor) and _sends(tensor) else None for tensor in tensors.values()]
    parts_of: list[Any] = [None] * world
    dist.all_gather_object(parts_of, parts)
    gathered = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        if not isinstance(tensor, DTensor):
            gathered[name] = tensor
            continue
        own = tensor.to_local()
        if rank:
            if parts[number] is not None and own.numel():
                dist.send(own.contiguous(), 0)
            continue
        whole = torch.empty(tensor.shape, dtype=tensor.dtype)
        for process in range(world):
            part = parts_of[process][number]
            if part is None or not (view := whole[part]).numel():
                continue
            if process:
                own = torch.empty_like(view, device=own.device, memory_format=torch.contiguous_format)
                dist.recv(own, process)
            view.copy_(own)
        gathered[name] = whole
    return {} if rank else gathered


@contextmanager
def whole_in_main(model: nn.Module) -> Iterator[None]:
    """Context in which a distributed network has whole parameters, on the CPU, in process 0. Other processes keep only
    their parts. All processes must enter it.

    **Arguments:**

    - `model`: the network. It cannot be called inside the context; afterwards it is as before.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # evaluation may have left whole parameters
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                if id(parameter) not in places:  # several modules may share it
                    tensors[f"{path}.{name}"] = parameter
                places.setdefault(id(parameter), []).append((module, name))
    gathered = gather_to_main({name: parameter.detach() for name, parameter in tensors.items()})
    try:
        for name, whole in gathered.items():
            parameter = nn.Parameter(whole, requires_grad=tensors[name].requires_grad)
            for module, key in places[id(tensors[name])]:
                module._parameters[key] = parameter
        yield
    finally:
        for name in gathered:
            for module, key in places[id(tensors[name])]:
                module._parameters[key] = cast(nn.Parameter, tensors[name])


def _sends(tensor: DTensor) -> bool:
    """Whether this process sends its part to the main one: of several processes with the same part only the first."""
    place = tensor.device_mesh.get_coordinate()
    if place is None:
        return False
    return not any(number and kind.is_replicate() for number, kind in zip(place, tensor.placements, strict=True))
