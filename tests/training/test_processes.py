"""pytest tests/training/test_processes.py: training in two processes, as `torchrun` starts them."""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from vismoe.training import Run, fit

from .tiny import tiny

# Everything that both see alike: no noise and no stochastic depth, which each process draws for its own images.
CHANGES = {
    "steps": 8,
    "batch_size": 16,
    "evaluate_every": 4,
    "checkpoint_every": 2,
    "mixup": 0.2,
    "cutmix": 0.5,
    "flip": 0.5,
    "average_decay": 0.9,
    "accumulate": 2,
}
OPTIONS = [part for name, value in CHANGES.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def files_of(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def torchrun(python: Path, out: Path, *more: str) -> list[str]:
    start = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vismoe"]
    return [*start, "train", "digits", *OPTIONS, "--warmup-steps", "1", "--device", "cpu", "--out", str(out), *more]


def environment(python: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": str(python)}  # the latter is torchrun's


@pytest.fixture(scope="module")
def alone(tmp_path_factory, sketched):
    return fit(tiny(**CHANGES), tmp_path_factory.mktemp("runs") / "alone")


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2])
def together(request, tmp_path_factory, forked):
    """A run with the whole network in both processes, and one with half of the experts in each."""
    out = tmp_path_factory.mktemp("runs") / "together"
    command = torchrun(forked, out, "--expert-parallel", str(request.param))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(forked))
    assert done.returncode == 0, done.stderr
    return Run(out), done.stdout


def test_the_loss_curve_is_that_of_one_process(alone, together):
    """Loss, accuracy, load and evaluation of every step, with mixup, cutmix, an average and accumulation; balancing is
    by both processes' counts."""
    run, _ = together
    assert len(run.metrics) == len(alone.metrics) == 10
    for ours, expected in zip(run.metrics, alone.metrics, strict=True):
        if exchanges := ours.pop("exchanges", None):
            assert sum(process["rows"] for process in exchanges) == 16 * 17 * 2  # of both layers
        assert ours.keys() == expected.keys()
        for name in ours.keys() - {"load"}:
            assert math.isclose(ours[name], expected[name], rel_tol=1e-4, abs_tol=1e-6), (ours["step"], name)
    first, last = run.load_model().state_dict(), alone.load_model().state_dict()
    biases = [name for name in last if name.endswith("balance_bias")]
    assert biases
    assert all(last[name].abs().max() > 0.01 for name in biases)
    for name in last:
        torch.testing.assert_close(first[name], last[name], rtol=1e-3, atol=1e-4)


def test_one_writes(alone, together):
    """The same files as of one process, and each line of progress once."""
    run, output = together
    shards = [f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)]
    expected = files_of(alone.path)
    if run.recipe.expert_parallel > 1:  # both write their parts
        whole = [file for file in expected if file.endswith("/tensors.safetensors")]
        parts = [f"{file.rpartition('/')[0]}/{shard}" for file in whole for shard in shards]
        expected = sorted({*expected, *parts}.difference(whole))
    assert files_of(run.path) == expected
    assert output.count("step 8/8") == 1


@pytest.mark.slow
def test_resumed_it_ends_bit_equal(together, tmp_path, forked):
    """Both processes asked to stop leave one checkpoint, of one step; resumed they end as those that never stopped."""
    whole, _ = together
    out = tmp_path / "run"
    process = subprocess.Popen(
        torchrun(forked, out, "--steps", "100000", "--checkpoint-every", "0"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(forked),
    )
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert "SIGTERM: stopped after step" in errors
    assert len(list((out / "checkpoints").iterdir())) == 1
    # The same by a kill at once: what is there is what the run that was not stopped had there.
    short = tmp_path / "short"
    recipe = json.loads((whole.path / "recipe.json").read_text())
    (short / "checkpoints").mkdir(parents=True)
    for name in ("recipe.json", "data.json", "metrics.jsonl"):
        (short / name).write_bytes((whole.path / name).read_bytes())
    (whole.path / "checkpoints" / "step-000004").rename(short / "checkpoints" / "step-000004")
    assert recipe["steps"] == 8
    done = subprocess.run(
        torchrun(forked, short, "--resume", "auto", "--expert-parallel", str(whole.recipe.expert_parallel)),
        capture_output=True,
        text=True,
        check=False,
        env=environment(forked),
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = ((run / "model" / "model.safetensors").read_bytes() for run in (short, whole.path))
    assert ours == theirs
    ours, theirs = ([{**line, "exchanges": None} for line in run.metrics] for run in (Run(short), whole))
    assert ours == theirs  # but for the time in exchanges


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    """Each process takes pairs of images: the error says of what the batch must be a multiple."""
    from vismoe.data.batches import SharedBatches, ShuffledForever

    with pytest.raises(ValueError, match="batch_size=14 for 4 processes: it must be a multiple of 8"):
        SharedBatches(ShuffledForever(100, 0), 14, 0, 4)
    parts = [next(iter(SharedBatches(ShuffledForever(100, 0), 16, rank, 4))) for rank in range(4)]
    whole = next(iter(SharedBatches(ShuffledForever(100, 0), 16)))
    assert sorted(key for part in parts for key in part) == sorted(whole)
    pair = dict(zip(whole, reversed(whole), strict=True))
    for part in parts:  # whom mixup pairs in a share, it pairs in the whole
        assert [pair[key] for key in part] == part[::-1]
