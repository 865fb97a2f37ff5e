"""A training step in real processes, with what each keeps and sends of it counted."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils._python_dispatch import TorchDispatchMode

import vismoe

ALL_REDUCE = dist.all_reduce
POLICY = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class Counter(TorchDispatchMode):
    """Counts the bytes that this process sends to others, from the arguments of each collective that it calls. A gather
    sends the own part to each other process, a reduction a part to each; a sum is both, of a part for each process."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = dict.fromkeys(("exchange", "parameters", "gradients", "balancing"), 0.0)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional"):
            self._count(function.__name__.partition(".")[0], arguments)
        return function(*arguments, **(options or {}))

    def _count(self, name: str, arguments: Any) -> None:
        if name == "all_to_all_single":
            rows, _, splits, group = arguments
            processes, own = self._place(_resolve_process_group(group))
            mine = splits[own] if splits else len(rows) // processes
            self.sent["exchange"] += rows[mine:].nbytes
        elif name == "_allgather_base_":
            self.sent["parameters"] += arguments[1].nbytes * (self._size(arguments[2]) - 1)
        elif name == "_reduce_scatter_base_":
            self.sent["gradients"] += arguments[0].nbytes * (self._size(arguments[2]) - 1)
        elif name == "allreduce_":
            ((tensor,), group, *_), size = arguments, self._size(arguments[1])
            self.sent["gradients"] += 2 * tensor.nbytes * (size - 1) / size
        elif name not in ("wait_tensor", "_wrap_tensor_autograd"):
            raise AssertionError(f"{name}: how much does it send?")

    def all_reduce(self, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """Stands for PyTorch's function: a router sums counts inside an operator, where no mode sees it."""
        if not tensor.is_floating_point():
            size = options["group"].size()
            self.sent["balancing"] += 2 * tensor.nbytes * (size - 1) / size
        return ALL_REDUCE(tensor, *arguments, **options)

    def _size(self, group: Any) -> int:
        return dist.ProcessGroup.unbox(group).size()

    def _place(self, group: Any) -> tuple[int, int]:
        return group.size(), group.rank()


def work(rank: int, folder: str, world: str, cases: str) -> None:
    """Writes what each case took to a file of the rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=int(world))
    results = [step(rank, **case) for case in json.loads(cases)]
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def step(
    rank: int, preset: str, batch: int, overrides: dict[str, Any], options: dict[str, Any], mixed: bool, recompute: bool
) -> dict[str, Any]:
    """One step of AdamW, counted."""
    torch.manual_seed(rank)
    model: Any = vismoe.create_model(preset, **overrides)
    model.set_grad_checkpointing(recompute)
    vismoe.parallelize(model, mixed_precision=POLICY if mixed else None, **options)
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(batch, *vismoe.weights.data_config(model)["input_size"])
    with Counter() as counter, mock.patch.object(dist, "all_reduce", counter.all_reduce):
        nn.functional.cross_entropy(model(images).float(), torch.zeros(batch, dtype=torch.int64)).backward()
    optimizer.step()
    local = [parameter.to_local() for parameter in model.parameters()]
    states = [optimizer.state[parameter] for parameter in model.parameters()]
    return {
        "sent": counter.sent,
        "parameters": sum(part.untyped_storage().nbytes() for part in local),
        "gradients": sum(parameter.grad.to_local().nbytes for parameter in model.parameters()),
        "optimizer": sum(
            state[name].to_local().untyped_storage().nbytes() for state in states for name in ("exp_avg", "exp_avg_sq")
        ),
    }
