"""Converts preprocessing between transformers' files (`preprocessor_config.json`) and timm's data configuration."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..folders.format import PROCESSOR

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""timm's names of Pillow's interpolation modes."""
ENTRIES = ("do_normalize", "image_mean", "image_std", "resample", "size", "crop_size", "do_center_crop", "crop_pct")


def read_processor(folder: Path) -> dict[str, Any] | None:
    """Reads the preprocessing of a folder as entries of timm's data configuration (size, mean, std, interpolation,
    crop_pct, crop_mode); None if the folder has no such file.

    **Raises:** ValueError for invalid preprocessing.
    """
    path = folder / PROCESSOR
    if not path.is_file():
        return None
    try:
        return _to_timm(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid preprocessing of images: {error!r}") from error


def processor_of(model_type: str) -> dict[str, Any]:
    """transformers' default preprocessing for a type of model, without the image size, as entries of timm's data
    configuration."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    processor = getattr(transformers, str(names.get("torchvision")), None)
    entries = {name: getattr(processor, name, None) for name in ENTRIES}
    data_config = _to_timm({name: value for name, value in entries.items() if value is not None})
    return {name: value for name, value in data_config.items() if name != "size"}


def write_processor(folder: Path, preprocessing: Mapping[str, Any]) -> None:
    """Writes timm's data configuration as transformers' `preprocessor_config.json`."""
    _, height, width = preprocessing["input_size"]
    share, squash = preprocessing.get("crop_pct", 1.0), preprocessing.get("crop_mode") == "squash"
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    scaled = [int(length / share) for length in (height, width)]
    entries = {
        "image_processor_type": "ViTImageProcessor" if squash and share == 1 else "BitImageProcessor",
        "do_resize": True,
        "size": {"height": scaled[0], "width": scaled[1]} if squash else {"shortest_edge": min(scaled)},
        "resample": numbers[preprocessing.get("interpolation", "bicubic")],
        "do_center_crop": not (squash and share == 1),
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }
    (folder / PROCESSOR).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _to_timm(entries: Mapping[str, Any]) -> dict[str, Any]:
    if not entries.get("do_rescale", True) or abs(entries.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError("pixels are not scaled to 0…1")
    data_config: dict[str, Any] = {}
    if not entries.get("do_normalize", True):
        data_config |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif "image_mean" in entries:
        data_config |= {"mean": tuple(entries["image_mean"]), "std": tuple(entries["image_std"])}
    if not all(0 < deviation < math.inf for deviation in data_config.get("std", ())):
        raise ValueError(f"image_std is {data_config['std']}, expected numbers > 0")
    if entries.get("resample") is not None:
        data_config["interpolation"] = INTERPOLATIONS[int(entries["resample"])]
    if entries.get("size") is None:
        return data_config
    size, crop = entries["size"], entries.get("crop_size") if entries.get("do_center_crop") else None
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    whole = (edge, edge) if edge is not None else pair(size)
    inner = whole if crop is None else pair(crop)
    return data_config | {
        "size": inner,
        "crop_pct": float(entries.get("crop_pct") or inner[0] / whole[0]),
        "crop_mode": "center" if edge is not None or crop is not None else "squash",
    }


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size in transformers' configurations: one number, two numbers, or a mapping."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
