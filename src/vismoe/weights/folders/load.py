"""Reads model folders: `config.json` and `model.safetensors`, which timm opens by itself once vismoe is imported.

Weights are never unpickled.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..huggingface.folder import read_transformers
from ..registry import create_model
from ..sources import ANSWERS_ONLY, ONNX
from .format import CONFIG, WEIGHTS, model_folder, read_config
from .parent import Parent

PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")


class HasParentError(ValueError):
    """A folder has only the differences from a parent, and such a folder is not accepted."""


def load_local(path: Path, preset: str | None, open_parent: Callable[[str], Parent] | None) -> nn.Module:
    """Loads a network as `vismoe.load` does, in evaluation mode.

    **Arguments:**

    - `path`, `preset`: see `load`.
    - `open_parent`: opens the dense parent of a folder with only the differences from it; None: such a folder is an
      error.

    **Raises:** as `load`; HasParentError.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a run folder, a model folder or a .safetensors file")
    if path.is_file():
        return _load_file(path, preset)
    folder = model_folder(path)
    config = read_config(folder)
    if "architecture" not in config:
        return read_transformers(folder, config)
    if "parent" in config and open_parent is None:
        raise HasParentError(f"{folder} has only the differences from its parent: expected a dense network")
    state = _read_weights(folder / WEIGHTS)
    model = build_network(folder, config)
    if "parent" in config and open_parent is not None:
        parent = _parent_of(folder, config["parent"], open_parent)
        state = parent.sparse_state(getattr(model, "moe", None)) | state
        state = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    return load_state(model, state, folder / WEIGHTS)


def build_network(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a model folder of vismoe's or timm's describes, without its weights.

    **Arguments:**

    - `folder`: the model folder.
    - `config`: the content of its `config.json`.

    **Raises:** ValueError for a description that fits no network.
    """
    model = build(folder)
    describe(model, folder / CONFIG, config)
    return model


def build(folder: Path) -> nn.Module:
    """Builds the network that the `config.json` of a model folder describes, without its weights.

    **Raises:** ValueError if that is no network.
    """
    try:
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception as error:  # timm's constructors raise any type of error for invalid values
        raise ValueError(
            f"{folder / CONFIG}: architecture and model_args describe no network that can be built: {error}"
        ) from error
    return model


def describe(model: Any, path: Path, config: Mapping[str, Any]) -> None:
    """Sets what a `config.json` says of a network beside its architecture: names of classes, task, largest level.

    **Arguments:** `path`: where the configuration is, for messages.

    **Raises:** ValueError for names that do not fit its classes.
    """
    names = config.get("label_names")
    if names is not None and (len(names) != model.num_classes or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path}: label_names must be one string for each of {model.num_classes} classes")
    model.pretrained_cfg |= {"label_names": names, "problem_type": config.get("problem_type")}
    if "max_level" in config:
        model.pretrained_cfg |= {"max_level": config["max_level"]}


def _parent_of(folder: Path, entry: Mapping[str, Any], open_parent: Callable[[str], Parent]) -> Parent:
    """Opens the parent that a model folder names.

    **Raises:** ValueError if it is missing or has changed.
    """
    source, expected = str(entry.get("source")), entry.get("sha256")
    try:
        parent = open_parent(source)
    except HasParentError as error:  # the parent is upcycled itself, or is this folder
        raise ValueError(
            f"{folder / CONFIG}: parent names {source}, which has only the differences from another parent: expected "
            "a dense network"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has only the differences from its parent {source}, which cannot be opened: {error}"
        ) from error
    if parent.sha256 != expected:
        raise ValueError(
            f"{folder} has only the differences from its parent {source}, whose weights have changed: SHA-256 is "
            f"{parent.sha256}, expected {expected}; restore the parent"
        )
    return parent


def _load_file(path: Path, preset: str | None) -> nn.Module:
    if path.suffix == ONNX:
        raise ValueError(f"{path}: {ANSWERS_ONLY}")
    state = _read_weights(path)
    head = state.get("head.weight")
    return load_state(build_preset(path, preset, 0 if head is None else len(head)), state, path)


def build_preset(path: Path, preset: str | None, num_classes: int) -> nn.Module:
    """Builds the network of a file that has only weights.

    **Raises:** ValueError without a preset.
    """
    if preset is None:
        raise ValueError(f"{path} has only weights: name their architecture with preset=…")
    return create_model(preset, num_classes)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    check_weights(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def check_weights(path: Path) -> None:
    """Raises ValueError for weights that are missing or pickled."""
    if path.suffix in PICKLES:
        raise ValueError(f"{path} has pickled weights, which can run code when loaded: only .safetensors is accepted")
    if not path.is_file():
        pickled = [name.name for name in path.parent.iterdir() if name.suffix in PICKLES]
        reason = f"{pickled[0]} is pickled, and pickles are never loaded" if pickled else "there are no weights"
        raise ValueError(f"{path.parent} has no {WEIGHTS}: {reason}")


def load_state(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> nn.Module:
    """Loads weights, and returns the network in evaluation mode.

    **Raises:** ValueError, with the path of the weights, for those of another network.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model.eval()
