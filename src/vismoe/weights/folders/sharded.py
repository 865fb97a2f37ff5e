"""Loads a model folder into a network that is distributed over processes: each reads only its parts of the weights."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from vismoe.moe.resident import local
from vismoe.parallel.gathering import part_of

from .format import WEIGHTS, model_folder, read_config
from .load import build_network, build_preset, check_weights, load_state


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
    try:
        with safe_open(weights, "pt") as file, _without_values():
            names = list(file.keys())
            if folder is None:
                head = file.get_slice("head.weight").get_shape() if "head.weight" in names else [0]
                model = build_preset(path, preset, head[0])
            else:
                model = build_network(folder, read_config(folder))
            # Sparse layers are moved to the device of the MLPs that they replace, with their buffers.
            buffers = {name for name, buffer in model.named_buffers() if not buffer.is_meta}
            state = {name: file.get_tensor(name) if name in buffers else _like(file, name) for name in names}
            load_state(model, state, weights)
        with safe_open(weights, "pt") as file:
            distribute(model)
            _read_parts(model, file)
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a safetensors file: {error}") from error
    return model.eval()


@contextmanager
def _without_values() -> Iterator[None]:
    """Context in which new modules have their parameters on the meta device. Buffers have their values, because those
    that are not saved come from the constructor."""

    def without_value(module: nn.Module, name: str, parameter: Tensor) -> nn.Parameter:
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(without_value)
    try:
        yield
    finally:
        handle.remove()


def _like(file: Any, name: str) -> Tensor:
    """A tensor without values, of the shape of one in a file."""
    return torch.empty(file.get_slice(name).get_shape(), device="meta")


@torch.no_grad()
def _read_parts(model: nn.Module, file: Any) -> None:
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
        values = file.get_slice(name)
        if tuple(values.get_shape()) != tuple(tensor.shape):  # a scalar of an earlier version
            values = file.get_tensor(name).view(tensor.shape)
        own = local(tensor)
        if own.numel():
            own.copy_(values[part_of(tensor) if isinstance(tensor, DTensor) else ...])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())
