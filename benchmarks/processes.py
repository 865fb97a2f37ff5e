"""Benchmark runs in processes of their own, so that memory and CPU time are measured for each run."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


def in_processes(jobs: int, run: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yields what `run(*arguments)` returns for each of `calls`, first finished first, `jobs` at a time. After an error
    no further call begins."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        try:
            for finished in as_completed([pool.submit(run, *arguments) for arguments in calls]):
                yield finished.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
