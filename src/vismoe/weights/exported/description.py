"""The description in an exported file: preprocessing and classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, cast

from timm.data.model_config import resolve_input_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn

KEY = "vismoe"
"""The entry of an ONNX file's metadata_props that holds the description, as JSON."""
FORMAT_VERSION = 1
CLASSIFIER = ("pixels",), ("logits",)
"""Names of the inputs and of the outputs of an exported classifier."""
DETECTOR = ("pixels", "mask"), ("boxes", "scores", "labels")
"""The same of an exported detector."""


@dataclass(frozen=True)
class Description:
    """Metadata of an exported file.

    - `architecture`: name of the network's architecture.
    - `preprocessing`: known entries of timm's data configuration (input_size, mean, std, interpolation, crop_pct);
      always with input_size.
    - `label_names`: class names in order; None if the classes have no names.
    - `problem_type`: "multi_label_classification" if an image may have several classes; "object-detection" for a
      detector; otherwise None.
    - `version`: version of vismoe.
    - `format`: version of this description's format.
    """

    architecture: str
    preprocessing: dict[str, Any]
    label_names: list[str] | None
    problem_type: str | None
    version: str = version("vismoe")
    format: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> "Description":
        """Parses a description. **Raises:** ValueError for an invalid description, and for a newer format."""
        try:
            entries = json.loads(text)
            if entries["format"] > FORMAT_VERSION:
                raise ValueError(f"format {entries['format']}, this vismoe reads up to {FORMAT_VERSION}: update vismoe")
            description = Description(**entries)
            channels, height, width = description.preprocessing["input_size"]
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is incomplete: {error!r}") from error
        names = description.label_names
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"label_names={names!r}: expected a list of strings")
        if not all(isinstance(size, int) and size > 0 for size in (channels, height, width)):
            raise ValueError(f"input_size={(channels, height, width)}: expected three integers > 0")
        return description


def describe_model(model: nn.Module, preprocessing: Mapping[str, Any] | None = None) -> Description:
    """Describes a network of timm's or transformers'.

    Networks of transformers', and of timm's that `create_model` did not make, have an input size but no mean and std:
    then the description has them only if `preprocessing` does.

    **Arguments:**

    - `model`: the network.
    - `preprocessing`: entries that replace the network's; default: none.

    **Raises:** ValueError if the input size or the classes are unknown.
    """
    if hasattr(model, "pretrained_cfg"):
        timm_config = cast(Mapping[str, Any], model.pretrained_cfg)
        names, problem_type = timm_config.get("label_names"), timm_config.get("problem_type")
        data_config, classes = resolve_input_data_config(model), cast(int, model.num_classes)
        if "max_level" in timm_config:
            data_config |= {"max_level": timm_config["max_level"]}
    elif isinstance(model, VisionTransformer):
        names, problem_type = None, None
        data_config, classes = {"input_size": (model.in_chans, *model.patch_embed.img_size)}, model.num_classes
    elif hasattr(model, "config") and hasattr(model.config, "id2label"):
        config = cast(Any, model.config)
        names, problem_type = _label_names(config.id2label), config.problem_type
        data_config, classes = _input_size(config), len(config.id2label)
    else:
        raise ValueError(
            f"{type(model).__name__} does not say its input size and classes: accepted are networks of vismoe, timm, "
            "and transformers' for image classification"
        )
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
    data_config = {**data_config, **(preprocessing or {})}
    if "input_size" not in data_config:
        raise ValueError(f'{architecture} does not say its input size: give preprocessing={{"input_size": (3, H, W)}}')
    if classes < 1:
        raise ValueError(
            f"{architecture} has no classes (num_classes=0): it returns features, not logits; export a classifier"
        )
    if names is not None and len(names) != classes:  # the network has a new head
        names = None
    json_config = {name: list(value) if isinstance(value, tuple) else value for name, value in data_config.items()}
    return Description(architecture, json_config, None if names is None else list(names), problem_type)


def _label_names(name_of_class: Mapping[int, str]) -> Sequence[str] | None:
    names = [name_of_class[number] for number in range(len(name_of_class))]
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names  # transformers' default


def _input_size(config: Any) -> dict[str, Any]:
    size = getattr(config, "image_size", None)
    if size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"input_size": (getattr(config, "num_channels", 3), height, width)}
