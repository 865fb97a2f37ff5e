"""pytest tests/test_evidence_work.py: a queue of processes that can be stopped, and what it says of bad input."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from evidence.kept import kept
from evidence.work import named, work

pytestmark = pytest.mark.benchmarks

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SLEEPER = """
import os, sys, time
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
QUEUE = """
import sys
from types import SimpleNamespace
from evidence.work import work
work(lambda: [SimpleNamespace(key=(), name=name) for name in ("a", "b", "c")], ["sleeper"], 2, lambda runs: 1.0, False)
"""


@dataclass(frozen=True)
class Job:
    name: str
    key: tuple[str, ...] = ()


def test_sigterm_ends_the_runs_too(tmp_path):
    """Those that run are ended, none is begun, the queue's status says by what."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(tmp_path)])}
    queue = subprocess.Popen([sys.executable, "-c", QUEUE], cwd=tmp_path, env=environment)
    files, patience = [tmp_path / "a", tmp_path / "b"], time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < patience
        time.sleep(0.1)
    queue.send_signal(signal.SIGTERM)
    assert queue.wait(30) == 128 + signal.SIGTERM
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    assert not (tmp_path / "c").exists()


def test_a_run_that_nobody_knows_and_no_process_to_run_it():
    with pytest.raises(SystemExit, match="--one b: no such run is known yet; --left lists"):
        named("b", [Job("a")])
    assert named("a", [Job("a")]) == Job("a")
    with pytest.raises(SystemExit, match="--jobs 0: accepted are 1 and more"):
        work(lambda: [Job("a")], ["nothing"], 0, lambda runs: 1.0, True)


def test_an_array_is_whole_or_not_there(tmp_path, monkeypatch):
    """A full disk leaves nothing behind; what is damaged is named."""

    def full(file, array):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            kept(tmp_path / "a.npy", lambda: np.ones(3))
    assert list(tmp_path.iterdir()) == []
    assert kept(tmp_path / "a.npy", lambda: np.ones(3)).sum() == 3
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"a\.npy is damaged .*: remove it, and it is made anew"):
        kept(tmp_path / "a.npy", lambda: np.ones(3))
