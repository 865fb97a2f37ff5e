"""Opens the data set that --data names."""

from pathlib import Path

from vismoe.adapt import run_splits
from vismoe.data import Data, open_data
from vismoe.tasks import Task
from vismoe.training import Run


def own_run(model: str, data: str | None) -> Run | None:
    """The run whose data set and splits are meant: the run that --data names, or the run of MODEL if --data names its
    data set or is not given; otherwise None.

    **Raises:** ValueError if no data set is given and MODEL is not a run folder.
    """
    if data is not None and Run.of(data) == (named := Run(Path(data))):
        return named
    run = Run.of(model)
    if data is None and run is None:
        raise ValueError(f"no data set given: {model} is not a run folder: name a data set with --data")
    if run is None or data is None:
        return run
    run_data = run.recipe.data
    return run if run_data == data or Path(run_data).resolve() == Path(data).resolve() else None


def open_set(
    model: str, data: str | None, split_seed: int | None = None, workers: int = 0, task: Task | None = None
) -> Data:
    """Opens the data set that --data names: a data set, or a run folder for the data set of that run. `val` is the test
    split if there is one. A run's own data set has the splits of the run.

    **Arguments:**

    - `model`: the text of MODEL.
    - `data`: the text of --data; None: not given.
    - `split_seed`, `workers`: see `open_data`; not used for a run's own data set.
    - `task`: the model's task, which opens the data set; default None: `open_data` does.

    **Raises:** as `own_run`, `run_splits` and `open_data`.
    """
    run = own_run(model, data)
    if run is not None:
        return run_splits(run)
    assert data is not None
    return (open_data if task is None else task.open)(data, split_seed, workers).for_testing
