"""Opens the model that MODEL names."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import nn

from vismoe.parallel import Mesh, join_mesh, resolve_device
from vismoe.parallel.gathering import is_distributed
from vismoe.training import Run
from vismoe.training.run import OPTIONS
from vismoe.weights import open_source, parse_source, set_image_size

from .notes import note


def open_model(
    name: str,
    num_classes: int | None = None,
    exported: bool = False,
    max_memory: str | None = None,
    expert_parallel: int = 1,
) -> nn.Module:
    """Opens a model as `vismoe.weights.open_source` does. Prints a note for a preset, whose weights are random,
    and for a run that is not finished."""
    source = parse_source(name)
    if not source.is_trained:
        note(f"{name} is a preset: its weights are random")
        torch.manual_seed(0)
    elif source.is_local and (run := Run.of(source.name)) is not None and not run.is_finished:
        remedy = "give the same `vismoe finetune` command again" if (run.path / OPTIONS).is_file() else "finish it"
        note(f"{run.path} is not finished, so its model is neither fully trained nor tested: {remedy}")
    return open_source(source, num_classes, exported, max_memory, expert_parallel)


def to_device(network: nn.Module, device: str, mesh: Mesh) -> nn.Module:
    """Moves a network to the device that an option names. A distributed network is on its process's device already.

    **Raises:** ValueError for a device that this machine does not have, and that is not a distributed network's.
    """
    resolved = mesh.device(resolve_device(device))
    if not is_distributed(network):
        return network.to(resolved)
    own = next(network.parameters()).device
    if device != "auto" and resolved.type != own.type:
        raise ValueError(f"device={device}: the processes share experts on {own.type} devices: leave --device out")
    return network


@contextmanager
def processes(expert_parallel: int) -> Iterator[Mesh]:
    """Context with the processes that `torchrun` started, or this one alone. Only the main one prints.

    **Arguments:**

    - `expert_parallel`: number of processes that are to share experts.

    **Raises:** ValueError if it does not divide the number of processes.
    """
    with join_mesh() as mesh, ExitStack() as stack:
        mesh.check_expert_parallel(expert_parallel)
        if not mesh.is_main:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
        yield mesh


def refuse_both(expert_parallel: int, max_memory: str | None) -> None:
    """Raises ValueError if experts are to be both distributed and on disk."""
    if expert_parallel > 1 and max_memory is not None:
        raise ValueError("--expert-parallel and --max-memory: experts are distributed over processes, or stay on disk")


def open_resized(name: str, image_size: int | None) -> nn.Module:
    """Opens a model as `open_model` does, and sets its image size if one is given."""
    model = open_model(name)
    if image_size is not None:
        set_image_size(model, image_size, name)
    return model
