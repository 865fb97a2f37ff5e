"""pytest -m faults tests/faults: distributed trainings in which a process dies, is stopped, or goes wrong. Each test
starts torchrun with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vismoe.training import Run
from vismoe.training.checkpointer import Checkpointer

pytestmark = pytest.mark.faults

FAULTY = Path(__file__).with_name("faulty.py")
OPTIONS = [
    *("train", "digits", "--steps", "8", "--batch-size", "16", "--evaluate-every", "4", "--checkpoint-every", "2"),
    *("--warmup-steps", "1", "--average-decay", "0.9", "--device", "cpu", "--expert-parallel", "2", "--resume", "auto"),
]
ORPHANS = 5.0
"""Seconds after which no process may be left."""


def torchrun(fault: str, out: Path, *more: str, restarts: int = 0) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*start, "--max-restarts", str(restarts), str(FAULTY), fault, *OPTIONS, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def run(*arguments: str | Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = torchrun(str(arguments[0]), Path(arguments[1]), *map(str, arguments[2:]), restarts=restarts)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without faults."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = run("none", out)
    assert done.returncode == 0, done.stderr
    return Run(out)


def left_over(out: Path) -> list[str]:
    """The processes whose command names a run folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(out) in command:
            found.append(f"{folder.name}: {command}")
    return found


@pytest.mark.parametrize("fault", ["kill", "kill-writing"])
def test_a_killed_process_is_restarted(whole, tmp_path, fault):
    """torchrun restarts all processes; the run ends bit-equal to one that nothing happened to."""
    done = run(fault, tmp_path / "run", restarts=3)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr  # one of the processes was killed
    ours, expected = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "run", whole.path))
    assert all(ours[name].equal(expected[name]) for name in expected)
    assert [line for line in Run(tmp_path / "run").metrics if "top1" in line] == [
        line for line in whole.metrics if "top1" in line
    ]


def test_sigterm_to_torchrun(tmp_path):
    """Both processes stop after the same step: one whole checkpoint, from which the run is resumed, and no process is
    left."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        torchrun("none", out, "--steps", "100000", "--checkpoint-every", "0"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert "SIGTERM: stopped after step" in errors
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert len(list(checkpoint.glob("shard-*.safetensors"))) == 2
    ended = time.monotonic()
    while left_over(out) and time.monotonic() - ended < ORPHANS:
        time.sleep(0.1)
    assert not left_over(out)
    step = int(checkpoint.name.removeprefix("step-"))
    assert Checkpointer(out / "checkpoints").load(step)["step"] == step  # its checksums are right


def test_a_process_that_hangs(whole, tmp_path):
    """The others end within the stated time, and name it; torchrun ends it and restarts all, and the run ends bit-equal
    to one that nothing happened to."""
    started = time.monotonic()
    done = run("hang", tmp_path / "run", "--hang-timeout", "10", restarts=1)
    assert "process 1 did not answer for 10 seconds" in done.stderr
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 200
    ours, expected = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "run", whole.path))
    assert all(ours[name].equal(expected[name]) for name in expected)


def test_a_gradient_that_is_not_finite_in_one_process(tmp_path):
    """No process's weights take it: the step is skipped in all, and the run ends as usual."""
    done = run("nan", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    finished = Run(tmp_path / "run")
    assert [line["step"] for line in finished.metrics if "skipped" in line] == [3]
    assert all(tensor.isfinite().all() for tensor in load_file(finished.path / "model" / "model.safetensors").values())


def test_processes_with_different_recipes(tmp_path):
    """They are refused, and the error names the process and what differs; nothing is written."""
    done = run("recipe", tmp_path / "run")
    assert done.returncode != 0
    assert "the processes do not agree: seed is 0 in process 0, 1 in process 1" in done.stderr
    assert not (tmp_path / "run").exists()
