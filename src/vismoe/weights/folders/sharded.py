"""Loads a model folder into a network that is distributed over processes: each reads only its parts of the weights."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from vismoe.moe.resident import local
from vismoe.parallel.gathering import part_of

from .format import WEIGHTS, model_folder, read_config
from .load import build_network, build_preset, check_weights, load_state
from .tensors import TensorFile


def is_whole(path: Path) -> bool:
    """Whether a model must be loaded whole before it is distributed: it is missing, has only the differences from a
    parent, or is of transformers', which reads its weights itself."""
    folder = model_folder(path)
    if not folder.is_dir():
        return not path.exists()
    config = read_config(folder)
    return "architecture" not in config or "parent" in config


def load_distributed(path: Path, preset: str | None, distribute: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Loads a network as `vismoe.load(path, ep=…)` does, in evaluation mode.

    **Arguments:**

    - `path`, `preset`: see `vismoe.load`; a path for which `is_whole` is false.
    - `distribute`: distributes a network whose parameters are on the meta device, in place.

    **Raises:** as `vismoe.load`.
    """
    folder = None if path.is_file() else model_folder(path)
    weights = path if folder is None else folder / WEIGHTS
    check_weights(weights)
    file = TensorFile(weights)
    with _without_values():
        if folder is None:
            head = file.places.get("head.weight")
            model = build_preset(path, preset, 0 if head is None else head.shape[0])
        else:
            model = build_network(folder, read_config(folder))
        # Sparse layers are moved to the device of the MLPs that they replace, with their buffers.
        buffers = {name for name, buffer in model.named_buffers() if not buffer.is_meta}
        state = {
            name: file.read(name) if name in buffers else torch.empty(place.shape, device="meta")
            for name, place in file.places.items()
        }
        load_state(model, state, weights)
    distribute(model)
    _read_parts(model, file)
    return model.eval()


@contextmanager
def _without_values() -> Iterator[None]:
    """Context in which new modules have their parameters on the meta device. Buffers have their values, because those
    that are not saved come from the constructor."""

    def without_value(module: nn.Module, name: str, parameter: Tensor) -> nn.Parameter:
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(cast(Any, without_value))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _read_parts(model: nn.Module, file: TensorFile) -> None:
    """Gives each parameter and buffer on the meta device memory for this process's part, and reads that part."""
    missing = {name for name, tensor in _tensors(model) if tensor.is_meta}

    def allocated(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        device = tensor.device_mesh.device_type if isinstance(tensor, DTensor) else "cpu"
        return torch.empty_like(tensor, device=device)

    model._apply(allocated)
    for name, tensor in _tensors(model):
        if name not in missing:
            continue
        place, own = file.places[name], local(tensor)
        if place.shape != tuple(tensor.shape):  # a scalar of an earlier version
            own.copy_(file.read(name).view(tensor.shape)[part_of(tensor) if isinstance(tensor, DTensor) else ...])
        elif own.numel():
            own.copy_(file.read_part(name, part_of(tensor)) if isinstance(tensor, DTensor) else file.read(name))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())
