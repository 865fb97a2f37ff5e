"""The processes of a training run as a mesh with named axes. Usually there is one process."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vismoe.moe import BalancedRouter

AXES = ("replicate", "data", "expert")
"""Names of the axes: copies of sharded weights, shards of weights, and experts distributed over processes. A batch is
divided over all of them."""
TIMEOUT = timedelta(hours=6)
"""How long processes wait while the main process works alone, for example reads a large folder."""


@dataclass(frozen=True)
class Axis:
    """One axis of a mesh, from the view of this process.

    **Arguments:**

    - `name`: one of AXES.
    - `size`: number of processes along the axis; default 1.
    - `rank`: rank of this process along the axis; default 0.
    - `group`: the process group of these processes; None if the size is 1.
    """

    name: str
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Mesh:
    """The processes that share each batch. With a single process, every axis has size 1 and nothing is communicated.

    **Arguments:**

    - `devices`: PyTorch's mesh, with a name of AXES for each dimension; missing axes have size 1. Default: this process
      alone.
    - `group`: the process group of all processes of `devices`; default: this process alone.
    - `local_rank`: rank of this process on its machine; default 0.
    """

    devices: DeviceMesh | None = None
    group: dist.ProcessGroup | None = None
    local_rank: int = 0

    @property
    def size(self) -> int:
        """Number of processes that share a batch, over all axes."""
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        """Rank of this process among all that share a batch."""
        return 0 if self.group is None else self.group.rank()

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.rank == 0

    def axis(self, name: str) -> Axis:
        """The axis with a name.

        **Raises:** ValueError for a name that is not in AXES.
        """
        if name not in AXES:
            raise ValueError(f"a mesh has no axis {name!r}: accepted are {', '.join(AXES)}")
        if self.devices is None or name not in (self.devices.mesh_dim_names or ()):
            return Axis(name)
        group = self.devices.get_group(name)
        return Axis(name, group.size(), group.rank(), group) if group.size() > 1 else Axis(name)

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: `device`, or, on a machine with several GPUs, the GPU of its local rank."""
        if self.size > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank)
        return device

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes, on the device of this process's tensor."""
        if self.size == 1:
            return tensor
        summed = tensor.to(self._comm_device(tensor.device), copy=True)
        dist.all_reduce(summed, group=self.group)
        return summed.to(tensor.device)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the tensors of all processes."""
        return self.sum(tensor) / self.size

    def all_reduce_max(self, number: int) -> int:
        """The largest of the numbers of all processes."""
        if self.size == 1:
            return number
        reduced = torch.tensor(number, device=self._comm_device(torch.device("cpu")))
        dist.all_reduce(reduced, dist.ReduceOp.MAX, self.group)
        return int(reduced)

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copies the values of tensors in the main process to the same tensors in all processes, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.to(self._comm_device(tensor.device))
            dist.broadcast(sent, group=self.group, group_src=0)
            if sent is not tensor:
                tensor.copy_(sent)

    def run_on_main(self, make: Callable[[], Any]) -> Any:
        """Calls `make` in the main process only, and returns its result in all processes. If `make` raises an error,
        all processes raise it."""
        if self.size == 1:
            return make()
        result, error = None, None
        if self.is_main:
            try:
                result = make()
            except Exception as raised:
                error = raised
        sent = [result, error]
        dist.broadcast_object_list(sent, group=self.group, group_src=0)
        if sent[1] is not None:
            raise sent[1]
        return sent[0]

    def replicate(self, model: nn.Module) -> nn.Module:
        """Wraps a network for training with several processes: gradients are averaged over all processes, and experts
        are balanced by the load in all processes."""
        if self.size == 1:
            return model
        for layer in model.modules():
            if isinstance(layer, BalancedRouter):
                layer.balance_group = self.group
        return DistributedDataParallel(model, process_group=self.group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks, in all processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def check_agreement(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError in all processes, with the process and the name, if a value differs between processes."""
        first, *others = self.gather(dict(values))
        for rank, other in enumerate(others, 1):
            differences = [name for name in first if other.get(name) != first[name]]
            if differences:
                texts = [
                    f"{name} is {first[name]} in process 0, {other.get(name)} in process {rank}" for name in differences
                ]
                raise ValueError(
                    f"the processes do not agree: {'; '.join(texts)}: start all of them with the same command"
                )

    def check_expert_parallel(self, number: int) -> None:
        """Raises ValueError if experts cannot be distributed over groups of `number` of these processes."""
        if number < 1:
            raise ValueError(f"expert_parallel={number}: accepted are numbers of processes ≥ 1")
        if self.size % number:
            start = "" if self.size > 1 else ": start the command with torchrun --nproc-per-node N -m vismoe …"
            raise ValueError(
                f"expert_parallel={number}: it must divide the number of processes, which is {self.size}{start}"
            )

    def no_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Context manager in which backward does not communicate; for all micro-batches of a step except the last."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def _comm_device(self, device: torch.device) -> torch.device:
        """The device to which a tensor must be moved for communication: NCCL, for example, cannot send CPU tensors."""
        kinds = backend_devices(dist.get_backend_config(self.group))
        if device.type in kinds:
            return device
        return torch.device("cpu") if "cpu" in kinds else self.device(torch.device(kinds[0]))


def backend_devices(config: str) -> list[str]:
    """The device types whose tensors a process group can send, from its configuration ("cpu:gloo,cuda:nccl")."""
    return [backend.partition(":")[0] for backend in config.split(",")]


@contextmanager
def join_mesh() -> Iterator[Mesh]:
    """Context manager that yields the mesh: all processes that `torchrun` started, or the process group that the
    program has initialised, along the axis "data". Otherwise this process alone."""
    if dist.is_initialized():
        yield _all_processes()
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        join_processes()
        try:
            yield _all_processes()
        finally:
            dist.destroy_process_group()
    else:
        yield Mesh()


def join_processes() -> None:
    """Joins the processes that `torchrun` started into PyTorch's default group. After a restart nothing is read that
    they stored before (https://github.com/pytorch/pytorch/issues/135712)."""
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def _all_processes() -> Mesh:
    group = dist.group.WORLD
    if group is None or group.size() == 1:
        return Mesh()
    kinds = backend_devices(dist.get_backend_config(group))
    devices = DeviceMesh.from_group(group, "cpu" if "cpu" in kinds else kinds[0], mesh_dim_names=("data",))
    return Mesh(devices, group, int(os.environ.get("LOCAL_RANK", 0)))


def resolve_device(name: str) -> torch.device:
    """The device with a name.

    **Arguments:**

    - `name`: "cpu", "cuda", "cuda:NUMBER", "mps", or "auto": CUDA if available, then MPS, then CPU.

    **Raises:** ValueError if this machine does not have the device.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(device for device, count in counts.items() if count))
    accepted = [device for device, count in counts.items() if count]
    accepted += [f"{device}:{index}" for device in accepted for index in range(counts[device])]
    if name not in accepted:
        raise ValueError(f"device {name!r} is not available; accepted are auto, {', '.join(accepted)}")
    return torch.device(name)


def free_memory(device: torch.device) -> float:
    """The memory that is available on a CUDA device, or on this machine, in bytes; infinite if the system does not say.
    Memory that Linux uses to cache files counts, because it is freed where it is needed."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf
