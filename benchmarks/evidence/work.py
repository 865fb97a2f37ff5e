"""A queue of runs, each in a process of its own: what has a row is done, so that it may be killed at any time."""

import os
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


def work(
    left: Callable[[], list[R]], command: Sequence[str], jobs: int, hours: Callable[[list[R]], float], only_say: bool
) -> None:
    """Starts `command` with each run's name behind it, `jobs` at a time, a thread each, until nothing is left: what is
    left may be more after each round."""

    def start(run: R) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", *command, run.name], check=True, env=environment)

    while runs := left():
        print(f"{len(runs)} runs are missing of those that are known yet: about", end=" ")
        print(f"{hours(runs):.1f} processor hours, {hours(runs) / jobs:.1f} hours of {jobs} processes", flush=True)
        if only_say:
            print("\n".join(run.name for run in runs))
            return
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(start, runs))
    print("nothing is missing")
