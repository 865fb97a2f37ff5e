"""What --data means on the command line."""

from pathlib import Path

from vismoe.adapt import run_splits
from vismoe.data import Data, open_data
from vismoe.tasks import Task
from vismoe.training import Run


def own_run(model: str, data: str | None) -> Run | None:
    """The run that MODEL is, where --data names the run's own set, or none; else None.

    **Raises:** ValueError where no set is named and MODEL is no run.
    """
    run = Run.of(model)
    if data is None and run is None:
        raise ValueError(f"on which set? {model} is no run, whose own would do: name one with --data")
    if run is None or data is None:
        return run
    own = run.recipe.data
    return run if own == data or Path(own).resolve() == Path(data).resolve() else None


def open_set(
    model: str, data: str | None, split_seed: int | None = None, task: Task | None = None, workers: int = 0
) -> Data:
    """The set that --data names; a run's own in the run's own parts.

    **Arguments:** `split_seed`, `workers`: of other sets; see `open_data`. `task`: of the model, which opens other
    sets.

    **Raises:** as `own_run`, `run_splits` and `open_data`.
    """
    own = own_run(model, data)
    if own is not None:
        return run_splits(own)
    assert data is not None
    return (open_data if task is None else task.open)(data, split_seed, workers)
