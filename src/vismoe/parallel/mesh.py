"""The processes of one training, as `torchrun` starts them; most often there is one."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vismoe.moe import BalancedRouter

PATIENCE = timedelta(hours=6)
"""How long processes wait for one that does something alone, such as looking through a large folder."""


@dataclass(frozen=True)
class World:
    """This process among `size`, the `rank`-th; of those on one machine the `local_rank`-th. With size 1 nothing is
    ever communicated."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This process's own device of a kind, where several are on a machine."""
        if self.size > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank)
        return device

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of all processes' tensors."""
        return self.sum(tensor) / self.size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size > 1:
            box = torch.tensor(number)
            dist.all_reduce(box, dist.ReduceOp.MAX)
            return int(box)
        return number

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Sets tensors to what they are in the leading process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def from_leader(self, make: Callable[[], Any]) -> Any:
        """What the leading process alone makes, for all; or the error that it meets, which all raise."""
        if self.size == 1:
            return make()
        made, error = None, None
        if self.leads:
            try:
                made = make()
            except Exception as met:
                error = met
        box = [made, error]
        dist.broadcast_object_list(box, 0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def replicate(self, model: nn.Module) -> nn.Module:
        """A network whose gradients are the mean over all processes, and whose experts are balanced by all their
        counts."""
        if self.size == 1:
            return model
        for layer in model.modules():
            if isinstance(layer, BalancedRouter):
                layer.balance_group = dist.group.WORLD
        return DistributedDataParallel(model)

    def silent(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Inside, backward does not communicate: for all parts of a batch but the last."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


@contextmanager
def join_world() -> Iterator[World]:
    """The processes that `torchrun` started, or that this program's own process group has; else this one alone."""
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        try:
            yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
        finally:
            dist.destroy_process_group()
    else:
        yield World()


def resolve_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else CPU.

    **Raises:** ValueError for a device that is not here.
    """
    number = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(device for device, there in number.items() if there))
    here = [device for device, there in number.items() if there]
    here += [f"{device}:{index}" for device in here for index in range(number[device])]
    if name not in here:
        raise ValueError(f"device {name!r} is not here; accepted are auto, {', '.join(here)}")
    return torch.device(name)
