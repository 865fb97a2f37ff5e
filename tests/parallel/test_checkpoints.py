"""pytest tests/parallel/test_checkpoints.py: checkpoints that several processes write together."""

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from vismoe.parallel import join_mesh
from vismoe.parallel.gathering import gather_to_main
from vismoe.training.checkpointer import Checkpointer, DamagedCheckpointError
from vismoe.training.recipe import Recipe
from vismoe.training.state import State, begin

from ..ranks import in_processes
from .equality import batch, batch_loss, pico, processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)
STEP = 2


def new_state(ep: int, seed: int) -> State:
    """A state with an average of the weights, whose experts are distributed over `ep` processes."""
    torch.manual_seed(seed)
    return begin(pico(), Recipe(expert_parallel=ep, average_decay=0.9))


def train(state: State) -> None:
    """Two steps of AdamW, after which no tensor of the state is zero or what it was at the beginning."""
    x, y = batch(8, state.model)
    state.model.train()
    for _ in range(STEP):
        batch_loss(state.model, x, y, len(x)).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.average is not None:
            state.average.update(state.model)
        state.step += 1


def write(rank: int, folder: str, size: str) -> None:
    """Trains in these processes with experts over two of them, and writes the checkpoint, and what it holds by other
    means."""
    with processes(rank, folder, int(size)), join_mesh() as mesh:
        state = new_state(2, 0)
        train(state)
        checkpointer = Checkpointer(Path(folder) / "first", mesh=mesh)
        for step in (STEP - 1, STEP):
            checkpointer.save(step, state.state_dict())
        tensors = {name: value for name, value in state.state_dict().items() if isinstance(value, Tensor)}
        gathered = gather_to_main(tensors)
        if rank == 0:
            save_file({name: tensor.contiguous().clone() for name, tensor in gathered.items()}, f"{folder}/expected")
        with Checkpointer(Path(folder) / "asynchronous", mesh=mesh, asynchronous=True) as checkpointer:
            checkpointer.save(STEP, state.state_dict())
            train(state)  # meanwhile


def pass_on(rank: int, folder: str, size: str, *ways: str) -> None:
    """Reads checkpoints in these processes, and writes what they then have: each way is FROM:TO:EP."""
    with processes(rank, folder, int(size)), join_mesh() as mesh:
        for way in ways:
            resume_and_save(Path(folder), way, mesh)


def resume_and_save(folder: Path, way: str, mesh: Any) -> None:
    """Resumes in a new state, as a training does, and saves it."""
    begin_at, end_at, ep = way.split(":")
    state = new_state(int(ep), 1)
    saved = Checkpointer(folder / begin_at, mesh=mesh).load(STEP, state.template)
    state.load_state_dict(saved)
    Checkpointer(folder / end_at, mesh=mesh).save(state.step, state.state_dict())


def differences(folder: Path, expected: Mapping[str, Tensor]) -> list[str]:
    """What is not bit-equal in a checkpoint, which is read without processes."""
    found = Checkpointer(folder).load(STEP)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    assert tensors.keys() == expected.keys()
    return [name for name, tensor in tensors.items() if not torch.equal(tensor, expected[name])]


@pytest.mark.slow
def test_any_layout_reads_any_other(tmp_path):
    """From (dp 2, ep 2) to one process, to two, to four with experts over four and with whole networks, and back: every
    weight, average and entry of the optimiser is bit-equal. So is what a thread writes while training goes on."""
    folder = str(tmp_path)
    in_processes(4, write, folder, "4")
    with join_mesh() as mesh:
        resume_and_save(tmp_path, "first:one:1", mesh)
    (tmp_path / "store").unlink()
    in_processes(2, pass_on, folder, "2", "first:two:2")
    (tmp_path / "store").unlink()
    ways = ["first:four:4", "first:whole:1", *(f"{name}:back-{name}:2" for name in ("one", "two", "four", "whole"))]
    in_processes(4, pass_on, folder, "4", *ways)
    expected = load_file(tmp_path / "expected")
    kinds = {name.partition(".")[0] for name in expected}
    assert kinds == {"model", "average", "optimizer"}
    assert any(name.endswith("exp_avg_sq") and "experts" in name for name in expected)
    names = ["first", "asynchronous", *(way.split(":")[1] for way in ways), "one", "two"]
    assert {name: differences(tmp_path / name, expected) for name in names} == {name: [] for name in names}
    assert len(list((tmp_path / "back-one" / f"step-{STEP:06d}").glob("shard-*"))) == 4


@pytest.mark.slow
def test_a_flipped_byte_in_any_shard(tmp_path):
    """At a hundred random places of two processes' files: refused, naming the file; the one before it is used."""
    in_processes(2, write, str(tmp_path), "2")
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path / "first", warn=lines.append)
    newest = tmp_path / "first" / f"step-{STEP:06d}"
    shards = sorted(newest.glob("shard-*.safetensors"))
    assert len(shards) == 2
    expected = load_file(tmp_path / "expected")
    chosen = random.Random(0)
    for number in range(100):
        shard = shards[number % 2]
        content = bytearray(shard.read_bytes())
        place = chosen.randrange(len(content))
        content[place] ^= 1 << number % 8
        shard.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=f"^checkpoints/{newest.name}/{shard.name} is damaged$"):
            checkpointer.load(STEP)
        before = checkpointer.newest()
        assert before is not None
        assert all(torch.equal(before[name], tensor) for name, tensor in expected.items())
        assert len(lines) == 1
        assert shard.name in lines.pop()
        content[place] ^= 1 << number % 8
        shard.write_bytes(content)
    assert not differences(tmp_path / "first", expected)
