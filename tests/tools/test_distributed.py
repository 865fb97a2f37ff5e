"""PyTorch's ways to train one network in several processes: pytest tests/tools/test_distributed.py"""

import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from vismoe import MoE

from ..ranks import in_two_processes
from .networks import sparse_network

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)


def train(rank: int, way: str) -> tuple[torch.Tensor, list[str]]:
    """The biases after some steps, with different images for each process, and what was warned of."""
    model = sparse_network(img_size=8).train()
    routers = [layer.router for layer in model.modules() if isinstance(layer, MoE)]
    if "group" in way:
        for router in routers:
            router.balance_group = dist.group.WORLD
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if "FSDP" in way:
            fully_shard(model)
            network = model
        else:
            network = DistributedDataParallel(model, broadcast_buffers="unbroadcast" not in way)
        steps = 3 + 2 * rank if "Join" in way else 3
        with Join([network]) if "Join" in way else nullcontext():
            for step in range(steps):
                generator = torch.Generator().manual_seed(10 * rank + step)
                network(torch.randn(4, 3, 8, 8, generator=generator) + rank).sum().backward()
    biases = torch.cat([router.balance_bias for router in routers])
    return biases, [str(warning.message) for warning in caught if "process" in str(warning.message)]


WAYS = ("DDP", "DDP unbroadcast", "FSDP", "FSDP, group", "DDP, group, Join")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({way: train(rank, way) for way in WAYS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_have_one_network_or_are_told(tmp_path):
    """Ranks agree on the bias under DistributedDataParallel, with buffers broadcast or not, under FSDP with a
    `balance_group`, and inside Join, where processes end at different times. Under FSDP without a group each balances
    by itself, which is said once, with what to set; plain ones say nothing."""
    in_two_processes(work, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for way in WAYS:
        (mine, said), (theirs, _) = first[way], second[way]
        assert mine.any()
        assert torch.equal(mine, theirs) == (way != "FSDP"), way
        assert len(said) == (way in ("FSDP", "DDP, group, Join")), (way, said)
    assert "balance_group = torch.distributed.group.WORLD" in first["FSDP"][1][0]
    assert "Join" in first["DDP, group, Join"][1][0]
