"""The network of a run that is still in training, or was interrupted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from vismoe.tasks import task_for
from vismoe.training import Run
from vismoe.training.checkpointer import Checkpointer
from vismoe.training.run import CHECKPOINTS, INITIAL
from vismoe.training.state import build
from vismoe.weights import load_network

from .run_splits import open_splits


def open_unfinished(run: Run, warn: Callable[[str], None] | None = None) -> tuple[nn.Module, int]:
    """Opens the newest checkpoint of a run that has no model yet.

    **Arguments:**

    - `run`: the run; another process may be training it.
    - `warn`: called with a line of text for each damaged checkpoint that is skipped; default: no call.

    **Returns:** the network that the run would evaluate and save at that step, in evaluation mode, and the step.

    **Raises:** FileNotFoundError if there is no undamaged checkpoint yet; ValueError, FileNotFoundError if the run's
    data set or initial weights cannot be opened, without which its network is not known.
    """
    saved = Checkpointer(run.path / CHECKPOINTS, warn=warn).newest()
    if saved is None:
        raise FileNotFoundError(
            f"{run.path} has no model and no checkpoint yet: wait for its first best evaluation (--checkpoint-every N "
            "writes checkpoints every N steps)"
        )
    network = load_network(run.path / INITIAL) if (run.path / INITIAL).exists() else _at_start(run)
    network.load_state_dict(evaluated_weights(saved))
    return network.eval(), saved["step"]


def _at_start(run: Run) -> nn.Module:
    """The network of the run's recipe before its first step, as it is saved: with its classes and preprocessing."""
    recipe, data = run.recipe, open_splits(run)
    task = task_for(recipe.task, data, recipe.to_json())
    with TemporaryDirectory() as folder:
        task.save(build(recipe, data, task), Path(folder) / "model")
        return load_network(Path(folder) / "model")


def evaluated_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint of the network that is evaluated: the EMA if there is one."""
    part = "average." if any(name.startswith("average.") for name in checkpoint) else "model."
    return {name.removeprefix(part): value for name, value in checkpoint.items() if name.startswith(part)}
