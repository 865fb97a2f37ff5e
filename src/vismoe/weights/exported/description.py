"""The description in an exported file: how images become its input, and what its outputs mean."""

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


@dataclass(frozen=True)
class Description:
    """What an exported file needs for use.

    - `architecture`: the network's name.
    - `preprocessing`: timm's data configuration (input_size, mean, std, interpolation, crop_pct), as far as it is
      known; input_size always is.
    - `label_names`: the classes in order, None where they have no names.
    - `problem_type`: "multi_label_classification" where an image may show several classes.
    - `version`: vismoe's; `format`: of this description.
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
        """**Raises:** ValueError for an invalid description, and for a newer format."""
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
            raise ValueError(f"input_size={(channels, height, width)}: expected three whole numbers")
        return description


def describe_model(model: nn.Module, preprocessing: Mapping[str, Any] | None = None) -> Description:
    """The description of a network of timm's or of transformers'.

    timm's networks that were not made by create_model, and transformers', know their input size, but not how images are
    scaled: the description then has no mean and std unless `preprocessing` has.

    **Arguments:**

    - `model`: the network.
    - `preprocessing`: entries that replace the network's own; default: none.

    **Raises:** ValueError where the input size or the classes are unknown.
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
            f"{type(model).__name__} does not say what goes in and comes out: accepted are timm's networks (and ours), "
            "and transformers' for image classification"
        )
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
    data_config = {**data_config, **(preprocessing or {})}
    if "input_size" not in data_config:
        raise ValueError(f'{architecture} does not say its input size: give preprocessing={{"input_size": (3, H, W)}}')
    if classes < 1:
        raise ValueError(f"{architecture} has no classes (num_classes=0): it gives features, not logits")
    if names is not None and len(names) != classes:  # it has a new head
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
