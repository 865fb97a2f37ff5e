"""What an exported file says of itself, beside its graph: how pictures become its input, what its outputs stand for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from timm.data.model_config import resolve_input_data_config
from torch import nn

from vismoe import __version__

KEY = "vismoe"
"""The entry of an ONNX file's metadata_props that holds the description, as JSON."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Description:
    """`architecture`: its name; `preprocessing`: timm's data configuration (input_size, mean, std, interpolation,
    crop_pct), or no more of it than is known, but always input_size; `label_names`: the classes in order, None where
    they have no names; `problem_type`: "multi_label_classification" where an image may show several classes."""

    architecture: str
    preprocessing: dict[str, Any]
    label_names: list[str] | None
    problem_type: str | None
    version: str = __version__
    format: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Description":
        """**Raises:** ValueError for what is no description, or of a newer format."""
        try:
            given = json.loads(text)
            if given["format"] > FORMAT_VERSION:
                raise ValueError(f"format {given['format']}, this vismoe reads up to {FORMAT_VERSION}: update vismoe")
            description = Description(**given)
            channels, height, width = description.preprocessing["input_size"]
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is incomplete: {error!r}") from error
        names = description.label_names
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"label_names={names!r}: expected a list of strings")
        if not all(isinstance(size, int) and size > 0 for size in (channels, height, width)):
            raise ValueError(f"input_size={(channels, height, width)}: expected three whole numbers")
        return description


def describe_model(model: nn.Module, preprocessing: Mapping[str, Any] | None = None) -> Description:
    """What a network of timm's or of transformers' knows of itself; `preprocessing` comes before that.

    transformers' networks know their input_size and classes, but not how pictures are scaled: that is in a file of its
    own, so it is left unsaid unless it is given.

    **Raises:** ValueError where the input size, or the classes, cannot be told.
    """
    given, config = dict(preprocessing or {}), getattr(model, "config", None)
    if hasattr(model, "pretrained_cfg"):
        known = cast(Mapping[str, Any], model.pretrained_cfg)
        names, problem_type = known.get("label_names"), known.get("problem_type")
        architecture = known.get("architecture") or type(model).__name__
        classes = cast(int, model.num_classes)
        preprocessing = resolve_input_data_config(model)
    elif config is not None and hasattr(config, "id2label"):
        names, problem_type = _names(config.id2label), config.problem_type
        architecture, classes = type(model).__name__, len(config.id2label)
        preprocessing = _input_size(config)
    else:
        raise ValueError(
            f"{type(model).__name__} does not say which input it takes: accepted are networks made by create_model "
            "(vismoe's or timm's) and transformers' networks for image classification"
        )
    preprocessing = {**preprocessing, **given}
    if "input_size" not in preprocessing:
        raise ValueError(f'{architecture} does not say its input size: preprocessing={{"input_size": (3, 224, 224)}}')
    if classes < 1:
        raise ValueError(f"{architecture} has no classes (num_classes=0): it gives features, not logits")
    if names is not None and len(names) != classes:
        names = None  # it has a new head
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in preprocessing.items()}
    return Description(architecture, plain, None if names is None else list(names), problem_type)


def _names(of_number: Mapping[int, str]) -> Sequence[str] | None:
    names = [of_number[number] for number in range(len(of_number))]
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names  # transformers' "no names"


def _input_size(config: Any) -> dict[str, Any]:
    size = getattr(config, "image_size", None)
    if size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"input_size": (getattr(config, "num_channels", 3), height, width)}
