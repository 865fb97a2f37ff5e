"""Balancing over several processes. Run: pytest tests/moe/test_balancing_group.py"""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vismoe import MLPExperts, MoE, TopKRouter
from vismoe.moe.routers.balancing import move_bias

from ..ranks import in_two_processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)


def layer_of(rank: int) -> MoE:
    """The same router on every rank, as data parallel training has it."""
    torch.manual_seed(0)
    layer = MoE(TopKRouter(8, 4), MLPExperts(8, 16, 4))
    torch.manual_seed(100 + rank)
    return layer


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batches = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(rank)).unbind(0)
    alone, together = layer_of(rank), layer_of(rank)
    together.router.balance_group = dist.group.WORLD
    together = pickle.loads(pickle.dumps(copy.deepcopy(together)))  # as averages of weights and loaders do
    assert together.router.balance_group is dist.group.WORLD
    for layer in (alone, together):
        layer(batches[0])
    seen = {"own": alone.router.balance_count.clone(), "summed": together.router.balance_count.clone()}
    for layer in (alone, together):
        layer(batches[1])
    seen |= {"own_bias": alone.router.balance_bias, "bias": together.router.balance_bias}
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_group_sums_counts(tmp_path: Path):
    """With `balance_group` set every process moves the same bias by the sum of all counts; without, by its own."""
    in_two_processes(work, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    total = first["own"] + second["own"]
    assert not torch.equal(first["own"], second["own"])
    for mine in (first, second):
        assert torch.equal(mine["summed"], total)
        assert torch.equal(mine["bias"], move_bias(torch.zeros(4), total))
        assert torch.equal(mine["own_bias"], move_bias(torch.zeros(4), mine["own"]))
    assert not torch.equal(first["own_bias"], first["bias"])
