"""A detector in two processes, and in micro-batches: as one process with whole batches.

python -m pytest tests/detection/test_processes.py
"""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import in_two_processes
from vismoe.data import training_batches
from vismoe.parallel import Mesh, join_mesh
from vismoe.tasks import open_for, task_for
from vismoe.training import Run, fit
from vismoe.training.loop import balance
from vismoe.training.state import begin, build
from vismoe.training.step import Trainer
from vismoe.weights import data_config

from .scenes import tiny, write_scenes

CHANGES = {"batch_size": 8, "average_decay": 0.9, "evaluate_every": 2, "accumulate": 2, "color_jitter": 0.2}


def gradients(folder: Path, mesh: Mesh, accumulate: int) -> dict[str, torch.Tensor]:
    """The loss and the gradient of each parameter in the first step, for eight images with 0 to 4 objects."""
    recipe = tiny(folder, batch_size=8, accumulate=accumulate, balance="none", clip_norm=0.0)
    data = open_for("auto", recipe.data)
    task = task_for("auto", data, recipe.to_json())
    recipe, _ = recipe.without(task.unused_settings, task.name)
    state = begin(build(recipe, data, task), recipe)
    transform = task.training_transform(data_config(state.model), recipe.augmentation)
    loader = training_batches(data.train, transform, 8, seed=0, rank=mesh.rank, ranks=mesh.size, collate=task.collate)
    trainer, found = Trainer(recipe, state, task, mesh, print), {}

    def keep(loss: torch.Tensor, statistics: list[torch.Tensor]) -> None:
        found["loss"] = loss
        found.update((name, parameter.grad) for name, parameter in state.model.named_parameters())

    trainer._update = keep  # the weights stay as they are
    trainer.step(next(iter(loader)), log_now=False)
    return found


def work(rank: int, folder: str) -> None:
    """One of two processes: the gradients, in a file, and a run."""
    torch.set_num_threads(1)
    balance.REBALANCE_BATCHES = 2
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with join_mesh() as mesh:
        torch.save(gradients(Path(folder) / "scenes", mesh, 2), f"{folder}/{rank}.pt")
    fit(tiny(Path(folder) / "scenes", **CHANGES), Path(folder) / "together")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data set, and what both processes left beside it."""
    if sys.platform == "win32":
        pytest.skip("needs gloo and a file store between processes")
    folder = tmp_path_factory.mktemp("runs")
    write_scenes(folder / "scenes")
    in_two_processes(work, str(folder))
    return folder


@pytest.mark.slow
def test_they_have_the_gradient_of_the_whole_batch(folder):
    """Numbers of objects differ, so a mean over objects of each part would not be that of the batch."""
    whole = gradients(folder / "scenes", Mesh(), 1)
    parts = [gradients(folder / "scenes", Mesh(), 4), *(torch.load(folder / f"{rank}.pt") for rank in range(2))]
    assert whole["head.centre.weight"].abs().max() > 1e-2
    for part in parts:
        for name, value in whole.items():
            assert (part[name] - value).abs().max() <= 1e-6, name


@pytest.mark.slow
def test_the_run_is_that_of_one_process(folder, monkeypatch):
    """Losses, loads and metrics of every step, with an average of weights and accumulation; one process writes."""
    monkeypatch.setattr(balance, "REBALANCE_BATCHES", 2)
    alone, together = fit(tiny(folder / "scenes", **CHANGES), folder / "alone"), Run(folder / "together")
    assert len(alone.metrics) == len(together.metrics) == 6
    for ours, expected in zip(together.metrics, alone.metrics, strict=True):
        assert ours.keys() == expected.keys()
        for name in ours.keys() - {"load"}:
            values = ours[name], expected[name]
            assert values[0] == values[1] or math.isclose(*values, rel_tol=1e-4, abs_tol=1e-4), (ours["step"], name)
    first, last = together.load_model().state_dict(), alone.load_model().state_dict()
    for name in last:
        torch.testing.assert_close(first[name], last[name], rtol=1e-3, atol=1e-4)
