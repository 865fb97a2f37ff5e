"""The files of a model folder, and its `config.json`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS, PROCESSOR, CARD = "config.json", "model.safetensors", "preprocessor_config.json", "README.md"
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD)
FORMAT_VERSION = 1
ENTRIES = {
    "model_args": dict,
    "pretrained_cfg": dict,
    "label_names": list,
    "vismoe_format": int,
    "parent": dict,
    "max_level": int,
}
MULTI_LABEL = "multi_label_classification"
"""transformers' problem type for several classes per image."""


def model_folder(path: Path) -> Path:
    """The model folder of a run folder; any other path unchanged."""
    return path / "model" if (path / "model" / CONFIG).is_file() else path


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the `config.json` of a model folder.

    **Raises:** ValueError if it is missing, is not JSON, names no architecture, has a newer format, or has invalid
    preprocessing.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    has_architecture = isinstance(config, dict) and (
        isinstance(config.get("architecture"), str) or of_transformers(config)
    )
    if not has_architecture:
        raise ValueError(f"{path} names no architecture: it is not a model's configuration")
    for name, kind in ENTRIES.items():
        if name in config and not isinstance(config[name], kind):
            raise ValueError(f"{path}: {name} is {config[name]!r}, expected a {kind.__name__}")
    if config.get("max_level", 1) < 1:
        raise ValueError(f"{path}: max_level is {config['max_level']}, expected a number > 0")
    if "architecture" in config:
        _check_preprocessing(path, config)
    version = config.get("vismoe_format", 0)
    if version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this vismoe reads up to {FORMAT_VERSION}: update vismoe")
    return config


def _check_preprocessing(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for values of timm's data configuration that would make images NaN or empty."""
    data_config = config.get("pretrained_cfg", config)
    accepted = {"mean": (-math.inf, "numbers"), "std": (0, "numbers > 0"), "crop_pct": (0, "a number > 0")}
    for name, (least, expected) in accepted.items():
        value = data_config.get(name)
        numbers = value if isinstance(value, list) else [value]
        fits = numbers and all(isinstance(n, int | float) and least < n < math.inf for n in numbers)
        if value is not None and not fits:
            raise ValueError(f"{path}: {name} is {value!r}, expected {expected}")


def of_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of transformers'."""
    names = config.get("architectures")
    return isinstance(config.get("model_type"), str) and isinstance(names, list) and len(names) == 1
