"""Model folders in: `config.json` and `model.safetensors`, which timm opens by itself once vismoe is imported.

Weights are never unpickled.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..huggingface.folder import of_transformers, read_transformers
from ..huggingface.network import as_network
from ..registry import TIMM, create_model
from .layout import ANSWERS_ONLY, CONFIG, ONNX, WEIGHTS
from .parent import Parent, sum_of

FORMAT_VERSION = 1
ENTRIES = {"model_args": dict, "pretrained_cfg": dict, "label_names": list, "vismoe_format": int, "parent": dict}
MULTI_LABEL = "multi_label_classification"
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")


def load(path: str | Path, preset: str | None = None) -> nn.Module:
    """Opens a run folder, a model folder, any folder timm or transformers wrote with safetensors, at evaluation.

    **Arguments:** `path`; `preset`: the architecture, for a bare `.safetensors` file that does not say it.

    **Raises:** FileNotFoundError where nothing is there; ValueError where it is not a model or offers pickled weights.
    """
    path = Path(path)
    folder = _model_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a run folder, a model folder or a .safetensors file")
    if path.is_file():
        return _load_file(path, preset)
    config = read_config(folder)
    if "architecture" not in config:
        return read_transformers(folder, config)
    state = _read_weights(folder / WEIGHTS)
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception as error:  # whatever timm's constructors raise for values that make no sense
        raise ValueError(
            f"{folder / CONFIG}: architecture and model_args describe no network that can be built: {error}"
        ) from error
    if "parent" in config:
        state = _parent_of(folder, config["parent"]).sparse_state(getattr(model, "moe", None)) | state
        state = {name: tensor for name, tensor in state.items() if name in model.state_dict()}
    names = config.get("label_names")
    if names is not None and (len(names) != model.num_classes or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"{folder / CONFIG}: label_names must be one string for each of {model.num_classes} classes")
    model.pretrained_cfg |= {"label_names": names, "problem_type": config.get("problem_type")}
    return _fill(model, state, folder / WEIGHTS)


def _model_folder(path: Path) -> Path:
    """The model folder of a run's folder; any other as it is."""
    return path / "model" if (path / "model" / CONFIG).is_file() else path


def open_parent(source: str | Path) -> Parent:
    """A dense network: of a run or model folder, or timm:NAME with its published weights.

    **Raises:** ValueError, FileNotFoundError where there is no such model.
    """
    if str(source).startswith(TIMM):
        model, name = create_model(str(source), num_classes=None, pretrained=True), str(source)
    else:
        model, name = load(source), str(Path(source).resolve())
    return Parent(name, sum_of(model.state_dict()), model)


def _parent_of(folder: Path, entry: Mapping[str, Any]) -> Parent:
    """The parent that a model folder names.

    **Raises:** ValueError where it is not there, or is not what it was.
    """
    source, expected = str(entry.get("source")), entry.get("sha256")
    place = _model_folder(Path(source))
    if (place / CONFIG).is_file() and "parent" in read_config(place):  # upcycled itself, perhaps this very folder
        raise ValueError(
            f"{folder / CONFIG}: parent names {source}, which holds only what differs from a parent of its own: a "
            "parent is a dense network"
        )
    try:
        parent = open_parent(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds what differs from its parent {source}, which is not there: {error}"
        ) from error
    if parent.sha256 != expected:
        raise ValueError(
            f"{folder} holds what differs from its parent {source}, whose weights have changed since "
            f"(SHA-256 {parent.sha256}, not {expected})"
        )
    return parent


def load_network(path: str | Path) -> nn.Module:
    """As `load`, but networks of transformers' for images come as `TransformersNetwork`: called with pixels alone
    they give logits alone."""
    return as_network(load(path))


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model folder.

    **Raises:** ValueError where it is missing, is not JSON, names no architecture, is of a newer format, or prepares
    images as nobody can.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    named = isinstance(config, dict) and (isinstance(config.get("architecture"), str) or of_transformers(config))
    if not named:
        raise ValueError(f"{path} names no architecture: it is not a model's configuration")
    for name, kind in ENTRIES.items():
        if name in config and not isinstance(config[name], kind):
            raise ValueError(f"{path}: {name} is {config[name]!r}, expected a {kind.__name__}")
    if "architecture" in config:
        _check_preparation(path, config)
    version = config.get("vismoe_format", 0)
    if version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this vismoe reads up to {FORMAT_VERSION}: update vismoe")
    return config


def _check_preparation(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for fields of timm's data configuration that would make NaN of images, or nothing."""
    given = config.get("pretrained_cfg", config)
    accepted = {"mean": (-math.inf, "numbers"), "std": (0, "numbers > 0"), "crop_pct": (0, "a number > 0")}
    for name, (least, what) in accepted.items():
        value = given.get(name)
        numbers = value if isinstance(value, list) else [value]
        fits = numbers and all(isinstance(n, int | float) and least < n < math.inf for n in numbers)
        if value is not None and not fits:
            raise ValueError(f"{path}: {name} is {value!r}, expected {what}")


def _load_file(path: Path, preset: str | None) -> nn.Module:
    if path.suffix == ONNX:
        raise ValueError(f"{path}: {ANSWERS_ONLY}")
    state = _read_weights(path)
    if preset is None:
        raise ValueError(f"{path} holds weights only: say which architecture they are of (preset=…)")
    head = state.get("head.weight")
    return _fill(create_model(preset, num_classes=0 if head is None else len(head)), state, path)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix in PICKLES:
        raise ValueError(f"{path} holds pickled weights, which can run code when read: only .safetensors is accepted")
    if not path.is_file():
        pickled = [name.name for name in path.parent.iterdir() if name.suffix in PICKLES]
        reason = f"{pickled[0]} is pickled, which is never read" if pickled else "there are no weights"
        raise ValueError(f"{path.parent} has no {WEIGHTS}: {reason}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _fill(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model.eval()
