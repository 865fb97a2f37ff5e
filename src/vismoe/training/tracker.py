"""Logs metrics to `metrics.jsonl`, and to the tracker of the recipe, if there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .recipe import Recipe, Tracker
from .run import Run

Log = Callable[[dict[str, Any]], None]


@contextmanager
def tracking(run: Run, recipe: Recipe, step: int) -> Iterator[Log]:
    """Yields a function that logs the metrics of a step: a dictionary with "step", numbers, and the load by layer.

    **Arguments:**

    - `run`: the run folder.
    - `recipe`: the recipe, with the name of the tracker.
    - `step`: the last step already logged; 0 in a new run.
    """
    if recipe.track == "none" or not run.writes:
        yield run.log
        return
    send, close = (_tensorboard if recipe.track == "tensorboard" else _trackio_or_wandb)(run, recipe, step)

    def log(values: dict[str, Any]) -> None:
        run.log(values)
        send(flat(values), values["step"])

    try:
        yield log
    finally:
        close()


def check_tracker(name: Tracker) -> None:
    """Raises ValueError if a tracker is not installed."""
    spec = None if name == "none" else find_spec(name)
    if name != "none" and (spec is None or spec.origin is None):  # no origin: a folder with this name, not a package
        raise ValueError(f"track={name}: {name} is not installed: pip install {name}")


def flat(values: dict[str, Any]) -> dict[str, float]:
    """The numbers by name, without nesting: the load fraction of an expert is `load/LAYER/EXPERT`, what a
    process did in exchanges `exchanges/RANK/rows` and `exchanges/RANK/share`. Other values are left out."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
    for layer, shares in values.get("load", {}).items():
        numbers |= {f"load/{layer}/{expert}": share for expert, share in enumerate(shares)}
    for rank, process in enumerate(values.get("exchanges", ())):
        numbers |= {f"exchanges/{rank}/{name}": value for name, value in process.items()}
    return numbers


def _tensorboard(run: Run, recipe: Recipe, step: int) -> tuple[Callable[[dict[str, float], int], None], Any]:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(run.path / "tensorboard", purge_step=step + 1)

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send, writer.close


def _trackio_or_wandb(run: Run, recipe: Recipe, step: int) -> tuple[Callable[[dict[str, float], int], None], Any]:
    """Logs to trackio or wandb, which have the same functions."""
    tracker = import_module(recipe.track)
    name = "-".join(run.path.resolve().parts[-2:])
    tracker.init(project="vismoe", name=name, config=recipe.to_json())
    return lambda values, step: tracker.log(values, step=step), tracker.finish
