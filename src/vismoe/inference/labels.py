"""What a network's outputs stand for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from vismoe.data import Data
from vismoe.weights import MULTI_LABEL, data_config, save


def save_classifier(model: nn.Module, path: Path, data: Data) -> None:
    """Writes a network as a model folder that knows the classes of a set and how its images are prepared."""
    save(model, path, data.classes, data_config(model), MULTI_LABEL if data.multi_label else None)


def label_names(model: nn.Module) -> Sequence[str]:
    """The names of a network's classes; their numbers where it does not know any."""
    return _config(model).get("label_names") or [str(number) for number in range(cast(int, model.num_classes))]


def is_multi_label(model: nn.Module) -> bool:
    """Whether a network was trained on images that may show several classes."""
    return _config(model).get("problem_type") == MULTI_LABEL


def as_known_to(model: nn.Module, data: Data) -> Data:
    """The set with a network's classes, in its order, matched by name; the set may lack some. A network that knows no
    names takes a set of as many classes as it is.

    **Raises:** ValueError where the set has classes that the network lacks, or several an image where it has one.
    """
    names = _config(model).get("label_names")
    if names is None and len(data.classes) == model.num_classes:
        return data
    if names is not None and is_multi_label(model) != data.multi_label:
        trained, given = (
            "several classes" if several else "one class" for several in (is_multi_label(model), data.multi_label)
        )
        raise ValueError(f"the model was trained on images with {trained} each, {data.name} has {given} an image")
    return data.numbered_as(label_names(model))


def _config(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "pretrained_cfg", {})
