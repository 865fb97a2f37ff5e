"""Opens the model that MODEL names."""

import torch
from torch import nn

from vismoe.training import Run
from vismoe.training.run import OPTIONS
from vismoe.weights import open_source, parse_source, set_image_size

from .notes import note


def open_model(
    name: str, num_classes: int | None = None, exported: bool = False, max_memory: str | None = None
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
    return open_source(source, num_classes, exported, max_memory)


def open_resized(name: str, image_size: int | None) -> nn.Module:
    """Opens a model as `open_model` does, and sets its image size if one is given."""
    model = open_model(name)
    if image_size is not None:
        set_image_size(model, image_size, name)
    return model
