"""The set that --data names on the command line."""

from pathlib import Path

from vismoe.adapt import run_splits
from vismoe.data import Data, open_data
from vismoe.tasks import Task
from vismoe.training import Run


def own_run(model: str, data: str | None) -> Run | None:
    """The run of MODEL, if --data names the run's own set or is not given; otherwise None.

    **Raises:** ValueError where no set is named and MODEL is no run.
    """
    run = Run.of(model)
    if data is None and run is None:
        raise ValueError(f"on which set? {model} is no run, whose own would do: name one with --data")
    if run is None or data is None:
        return run
    run_data = run.recipe.data
    return run if run_data == data or Path(run_data).resolve() == Path(data).resolve() else None


def open_set(
    model: str, data: str | None, split_seed: int | None = None, workers: int = 0, task: Task | None = None
) -> Data:
    """The set that --data names, its `val` the test split where it has one; a run's own set in the splits of the run.

    **Arguments:** `split_seed`, `workers`: for other sets, see `open_data`; `task`: the model's task, which opens them.

    **Raises:** as `own_run`, `run_splits` and `open_data`.
    """
    run = own_run(model, data)
    if run is not None:
        return run_splits(run)
    assert data is not None
    return (open_data if task is None else task.open)(data, split_seed, workers).for_testing
