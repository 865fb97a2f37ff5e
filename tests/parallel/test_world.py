"""pytest tests/parallel/test_world.py: what processes tell each other, in two that really are some."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vismoe import MLPExperts, MoE, TopKRouter
from vismoe.parallel import World, join_world

from ..ranks import in_two_processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with join_world() as world:
        tensors = [torch.full((2,), float(rank)), torch.tensor(rank)]
        world.follow(tensors)
        model = nn.Sequential(nn.Linear(4, 4), MoE(TopKRouter(4, 2), MLPExperts(4, 8, 2)))
        network = world.replicate(model)
        said = {
            "world": (world.rank, world.size, world.leads),
            "sum": world.sum(torch.tensor([1.0, rank])).tolist(),
            "mean": world.mean(torch.tensor([1.0, rank])).tolist(),
            "largest": world.largest(15 * rank),
            "followed": [tensor.tolist() for tensor in tensors],
            "from_leader": world.from_leader(lambda: f"made by {rank}"),
            "wrapped": isinstance(network, DistributedDataParallel),
            "group": model[1].router.balance_group is dist.group.WORLD,
        }
        torch.save(said, f"{folder}/{rank}.pt")
    assert dist.is_initialized()  # a group that is somebody else's is left to them
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path):
    """Sums, means, largest, what the first one has and makes; gradients and balancing over both."""
    in_two_processes(work, str(tmp_path))
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == {
            "world": (rank, 2, rank == 0),
            "sum": [2.0, 1.0],
            "mean": [1.0, 0.5],
            "largest": 15,
            "followed": [[0.0, 0.0], 0],
            "from_leader": "made by 0",
            "wrapped": True,
            "group": True,
        }


def test_one_process_communicates_nothing(monkeypatch):
    """Alone there is no process group, and everything is its own argument."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_world() as world:
        assert not dist.is_initialized()
        tensor, model = torch.ones(2), nn.Linear(2, 2)
        assert world == World(rank=0, size=1, local_rank=0)
        assert world.leads
        assert world.sum(tensor) is tensor
        assert world.largest(3) == 3
        assert world.from_leader(lambda: "mine") == "mine"
        assert world.replicate(model) is model


@pytest.mark.parametrize(("name", "expected"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_a_device_of_its_own(name, expected):
    """Of several devices of a machine each process takes its own, unless one was named."""
    assert World(rank=3, size=4, local_rank=1).device(torch.device(name)) == torch.device(expected)
    assert World().device(torch.device(name)) == torch.device(name)


def test_torchrun_s_variables_alone_start_a_group(monkeypatch):
    """A batch system that sets WORLD_SIZE=1, as for a single process, starts none."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "1")
    monkeypatch.setitem(os.environ, "RANK", "0")
    with join_world() as world:
        assert world.size == 1
        assert not dist.is_initialized()
