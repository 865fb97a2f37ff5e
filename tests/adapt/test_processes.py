"""pytest tests/adapt/test_processes.py: finetune in two processes, as `torchrun` starts them."""

import os
import subprocess

import pytest

import vismoe
from vismoe.adapt import Options, finetune

from .small import small_vit
from .test_finetune import fill


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "head"])
def test_torchrun_is_one_adaptation(tmp_path, forked, train):
    """Each line is printed once, one whole run is left, with the split of one process and the figures to rounding."""
    vismoe.save(small_vit(depth=2), tmp_path / "parent")
    data, out = str(fill(tmp_path / "data")), tmp_path / "two"
    start = [str(forked), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vismoe"]
    arguments = ["finetune", "--data", data, "--from", str(tmp_path / "parent"), "--train", train]
    arguments += ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": str(forked)}
    done = subprocess.run(
        [*start, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for line in (" validation, ", "a linear classifier on the frozen network", "everything is in", "test split: "):
        assert done.stdout.count(line) == 1, done.stdout
    options = Options(data, str(tmp_path / "parent"), train=train, epochs=2, batch_size=8)
    one = finetune(options, tmp_path / "one", device="cpu")
    two = vismoe.training.Run(out)
    assert {file.name for file in out.iterdir()} == {file.name for file in one.run.path.iterdir()}
    assert two.read("split.json") == one.run.read("split.json")
    assert two.read("report.json")["test"] == pytest.approx(one.report["test"], rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share(tmp_path, forked):
    """Exit code 2, one line that says of what the batch must be a multiple, and no run folder."""
    data, out = str(fill(tmp_path / "data", 8)), tmp_path / "two"
    start = [str(forked), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vismoe"]
    arguments = ["finetune", "--data", data, "--dense", "--batch-size", "7", "--device", "cpu", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": str(forked)}
    done = subprocess.run(
        [*start, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.stderr.count("vismoe: error: batch_size=7 for 2 processes: it must be a multiple of 4") == 1
    assert "exitcode  : 2" in done.stderr
    assert not out.exists()
