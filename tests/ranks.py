"""A function in several processes, for what is trained side by side."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from . import forks

ROOT = Path(__file__).parents[1]


def in_processes(number: int, work: Callable[..., None], *arguments: str) -> None:
    """`work(rank, *arguments)` at each rank, each in a process forked from one that has imported vismoe.

    **Raises:** AssertionError with what a process wrote, where one of them failed.
    """
    code = f"import sys; from {work.__module__} import {work.__name__} as work; work(int(sys.argv[1]), *sys.argv[2:])"
    processes = [
        subprocess.Popen(
            [forks.command(), "-c", code, str(rank), *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(number)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * number, "\n".join(errors)


def in_two_processes(work: Callable[..., None], *arguments: str) -> None:
    """`in_processes` with two of them."""
    in_processes(2, work, *arguments)
