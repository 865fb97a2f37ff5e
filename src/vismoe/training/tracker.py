"""Where the figures of a training go: `metrics.jsonl` always, and a tracker that the recipe names."""

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
    """Inside, a function that logs figures of a step: a dict with `step`; numbers, and lists of them by layer.

    **Arguments:** `step`: the last one that was logged before, where the run goes on.
    """
    if recipe.track == "none" or not run.writes:
        yield run.log
        return
    send, close = (_tensorboard if recipe.track == "tensorboard" else _runs)(run, recipe, step)

    def log(values: dict[str, Any]) -> None:
        run.log(values)
        send(flat(values), values["step"])

    try:
        yield log
    finally:
        close()


def check_tracker(name: Tracker) -> None:
    """Raises ValueError where a tracker is not installed."""
    if name != "none" and ((found := find_spec(name)) is None or found.origin is None):  # a folder called so is none
        raise ValueError(f"track={name}: {name} is not installed here: pip install {name}")


def flat(values: dict[str, Any]) -> dict[str, float]:
    """Figures by one name each: of an expert's share of the load, `load/LAYER/NUMBER`. What is no number is left."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
    for layer, shares in values.get("load", {}).items():
        numbers |= {f"load/{layer}/{expert}": share for expert, share in enumerate(shares)}
    return numbers


def _tensorboard(run: Run, recipe: Recipe, step: int) -> tuple[Callable[[dict[str, float], int], None], Any]:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(run.path / "tensorboard", purge_step=step + 1)

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send, writer.close


def _runs(run: Run, recipe: Recipe, step: int) -> tuple[Callable[[dict[str, float], int], None], Any]:
    """trackio and wandb, whose calls are the same."""
    tracker = import_module(recipe.track)
    name = "-".join(run.path.resolve().parts[-2:])
    tracker.init(project="vismoe", name=name, config=recipe.to_json())
    return lambda values, step: tracker.log(values, step=step), tracker.finish
