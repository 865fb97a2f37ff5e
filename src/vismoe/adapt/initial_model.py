"""The network before the training: made once per run, then loaded."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vismoe.tasks import Task
from vismoe.training.run import INITIAL
from vismoe.weights import load_network
from vismoe.weights.folders.format import CONFIG

from .options import Options
from .reserve_run import reserve


def made_once(options: Options, path: Path, task: Task, make: Callable[[], nn.Module]) -> nn.Module:
    """The network before the training of a run. If the run folder lacks it, it is made, and saved there with the
    options.

    **Arguments:**

    - `options`: the options; their seed decides new weights.
    - `path`: the run folder.
    - `task`: saves the network.
    - `make`: makes the network.
    """
    folder = path / INITIAL
    if (folder / CONFIG).exists():
        return load_network(folder)
    torch.manual_seed(options.seed)
    network = make()
    reserve(options, path)
    task.save(network.cpu(), folder)
    return network
