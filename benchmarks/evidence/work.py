"""A queue of runs, each in a process of its own: what has a row is done, so that it may be killed at any time."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from table import Table

RESULTS = Path(__file__).parents[1] / "results"


class Named(Protocol):
    """A run: `key` as in columns of a table, `name` as one word."""

    @property
    def key(self) -> tuple[str, ...]: ...

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Named)


def missing(runs: Sequence[R], table: Table, columns: Sequence[str]) -> list[R]:
    """Those without a row."""
    done = table.done(*columns)
    return [run for run in runs if run.key not in done]


def named(name: str, runs: Sequence[R]) -> R:
    """The run of that name.

    **Raises:** SystemExit where there is none.
    """
    found = next((run for run in runs if run.name == name), None)
    if found is None:
        raise SystemExit(f"--one {name}: no such run is known yet; --left lists those that are missing")
    return found


def work(
    left: Callable[[], list[R]], command: Sequence[str], jobs: int, hours: Callable[[list[R]], float], only_say: bool
) -> None:
    """Starts `command` with each run's name behind it, `jobs` at a time, a thread each, until nothing is left: what is
    left may be more after each round. SIGTERM ends the runs too."""
    if jobs < 1:
        raise SystemExit(f"--jobs {jobs}: accepted are 1 and more")
    started: list[subprocess.Popen[bytes]] = []

    def start(run: R) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-m", *command, run.name], env=environment)
        started.append(process)
        if status := process.wait():
            raise subprocess.CalledProcessError(status, run.name)

    def stop(number: int, frame: object) -> None:
        for process in started:
            process.terminate()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    while runs := left():
        print(f"{len(runs)} runs are missing of those that are known yet: about", end=" ")
        print(f"{hours(runs):.1f} processor hours, {hours(runs) / jobs:.1f} hours of {jobs} processes", flush=True)
        if only_say:
            print("\n".join(run.name for run in runs))
            return
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(start, runs))
    print("nothing is missing")
