"""Presets as timm models: `timm.create_model(name)` works once vismoe is imported."""

import fnmatch
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from vismoe.files.hub import download, downloading
from vismoe.vit import PRESETS, Preset, SparseVisionTransformer
from vismoe.vit.weight_decay import FeatureTrunk

from .fitting import Stored, architecture
from .folders.format import CONFIG
from .published import PUBLISHER, Published, tagged, tags_of
from .sources import parse_architecture

ANY_SHAPE = "vmoe_vit"
"""The entry point of networks without a preset: its arguments define them."""

SOURCES = ("source", "file", "url", "hf_hub_id", "state_dict")
"""Fields of timm's configurations that locate weights."""

PREPROCESSING = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "num_classes": 1000,
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}


def _input_config(preset: Preset) -> dict[str, Any]:
    stem = {"first_conv": "patch_embed.backbone.0.conv"} if preset.arguments.get("stem") == "conv" else {}
    return {"input_size": (3, preset.image, preset.image)} | stem


def _published_config(preset: Preset, published: Published) -> dict[str, Any]:
    """timm's configuration of published weights. timm never reads the address: the entry points do."""
    size = published.image_size
    weights = {"input_size": (3, size, size), "num_classes": published.classes, "tag": published.tag}
    origin = {"url": f"{PUBLISHER}/{published.name}.index", "origin_url": "https://github.com/google-research/vmoe"}
    return PREPROCESSING | _input_config(preset) | published.preprocessing | weights | origin


def _configurations() -> dict[str, dict[str, Any]]:
    """Configurations by timm's names. NAME.* is for a name without a tag, for which timm would otherwise choose one of
    the tags."""
    configurations = {ANY_SHAPE: PREPROCESSING | {"input_size": (3, 224, 224)}}
    for name, preset in PRESETS.items():
        configurations |= {
            f"{name}.{tag}": _published_config(preset, published) for tag, published in tags_of(name).items()
        }
        configurations[f"{name}.*"] = PREPROCESSING | _input_config(preset)
    return configurations


default_cfgs = generate_default_cfgs(_configurations())


_provide: Callable[[Published], Path]


def provide_weights(provide: Callable[[Published], Path]) -> None:
    """Sets the function that returns the model folder of published weights. A module above (`pretrained.py`) sets it,
    because conversion needs the networks that are built here."""
    global _provide
    _provide = provide


def _register(name: str, defaults: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **arguments: Any) -> nn.Module:
        model_args = dict(defaults)
        arguments = {key: value for key, value in arguments.items() if value is not None}
        filter_weights: Any = checkpoint_filter_fn
        published = _published(name, arguments)
        has_source = _has_source(arguments, published)
        if published is not None:
            model_args |= architecture(PRESETS[name], published)
            arguments["pretrained_cfg"] = _published_config(PRESETS[name], published)
        if pretrained and not has_source:
            if published is None:
                raise ValueError(_no_weights(name))
            stored = Stored(_provide(published))
            model_args |= stored.sizes
            arguments["pretrained_cfg"] |= stored.configuration
            filter_weights = stored.fit
        arguments = model_args | arguments
        model = build_model_with_cfg(
            SparseVisionTransformer,
            name,
            pretrained,
            pretrained_filter_fn=filter_weights,
            feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": FeatureTrunk},
            **arguments,
        )
        if model.in_chans != 3:
            grey = (0.5,) * model.in_chans
            model.pretrained_cfg |= {"mean": grey, "std": grey, "input_size": (model.in_chans, *_image_size(model))}
        # timm keeps only the arguments of the call; a model folder needs all that define the network.
        model._model_args = model_args
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    register_model(entry_point)


def _published(name: str, arguments: dict[str, Any]) -> Published | None:
    """The published weights that timm's argument `pretrained_cfg` names, by tag or by a configuration.

    **Raises:** ValueError for a tag that the preset does not have.
    """
    if isinstance(config_or_tag := arguments.get("pretrained_cfg"), str):
        return tagged(name, config_or_tag)
    config = _pretrained_config(arguments)
    has_other_source = any(config.get(source) for source in SOURCES if source != "url")
    return None if config_or_tag is None or has_other_source else tags_of(name).get(config.get("tag") or "")


def _has_source(arguments: dict[str, Any], published: Published | None) -> bool:
    """Whether the arguments name another source of weights than the published one."""
    config = {} if published else _pretrained_config(arguments)
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    return any(config.get(source) or overlay.get(source) for source in SOURCES)


def _pretrained_config(arguments: dict[str, Any]) -> dict[str, Any]:
    config = arguments.get("pretrained_cfg") or {}
    return config if isinstance(config, dict) else vars(config)


def _no_weights(name: str) -> str:
    if tags := tags_of(name):
        return f"{name} needs a tag: use {' or '.join(f'{name}.{tag}' for tag in tags)}"
    return f"no weights are published for {name}: use pretrained=False, or vismoe.load with a model folder"


def _image_size(model: Any) -> tuple[int, int]:
    height, width = model._traits["img_size"]
    return height, width


for _name, _preset in PRESETS.items():
    _register(_name, _preset.arguments)
_register(ANY_SHAPE, {"weight_init": "jax"})


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Lists the names of presets, or of published weights (PRESET.TAG).

    **Arguments:**

    - `pattern`: a shell pattern, such as "*_e8"; with a dot it matches published weights; default "*".
    - `pretrained`: whether to list published weights instead of presets; default False.
    """
    if not pretrained and "." not in pattern:
        return [name for name in PRESETS if fnmatch.fnmatch(name, pattern)]
    names = [f"{preset}.{tag}" for preset in PRESETS for tag in tags_of(preset)]
    return [name for name in names if fnmatch.fnmatch(name if "." in pattern else name.partition(".")[0], pattern)]


def create_model(name: str, num_classes: int | None = None, pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Builds a preset, as `timm.create_model(name)` does once vismoe is imported.

    **Arguments:**

    - `name`: a preset (see `list_models()`), PRESET.TAG (see `list_models(pretrained=True)`), or timm:NAME, any other
      timm model.
    - `num_classes`: number of classes; 0 for features; default: that of the weights (presets: 1000).
    - `pretrained`: whether to load trained weights; default False: random weights. They are downloaded and converted
      once, into the cache (`VISMOE_WEIGHTS_URL`, see docs/convert.md). For another number of classes the classifier is
      new, for another image size position embeddings are resized.
    - `overrides`: fields of `vismoe.vit.MoEConfig` (num_experts=, experts_per_token=, moe_layers=, balance=, …) and
      arguments of timm's VisionTransformer (img_size=, patch_size=, in_chans=, drop_path_rate=, …).

    **Returns:** the network.

    **Raises:** ValueError for an unknown name (near matches are listed), for arguments that do not fit, and for weights
    that cannot be downloaded.
    """
    source = parse_architecture(name)
    if source.kind == "timm":
        return _of_timm(source.name, num_classes, pretrained, overrides)
    if overrides.get("experts") == "low-rank":
        raise ValueError('experts="low-rank" needs the MLP of a trained model: use vismoe.upcycle, or experts="full"')
    return _create(name, num_classes, pretrained, overrides)


def _of_timm(name: str, num_classes: int | None, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    """Creates a timm model with `img_size` and `in_chans`. Models that accept any image size do not get the former as
    an argument."""
    defaults, channels = timm.get_pretrained_cfg(name), overrides.get("in_chans", 3)
    size = (overrides["img_size"],) * 2 if "img_size" in overrides else defaults.input_size[1:]
    overlay: dict[str, Any] = {"input_size": (channels, *size)}
    if "img_size" in overrides:
        overlay["crop_pct"] = 1.0  # the original crop is for the original size
    if channels != 3:
        overlay |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    if not defaults.fixed_input_size:
        overrides = {key: value for key, value in overrides.items() if key != "img_size"}
    create = partial(_create, name, num_classes, pretrained, overrides | {"pretrained_cfg_overlay": overlay})
    if not pretrained:
        return create()
    if not any(vars(defaults)[source] for source in SOURCES) and "pretrained_cfg" not in overrides:
        raise ValueError(f"timm has no trained weights of {name}: use a name of timm.list_pretrained(), or a preset")
    if defaults.hf_hub_id:
        download(defaults.hf_hub_id, (CONFIG,))  # fail before timm's retries
    return downloading(f"timm:{name}", create)


def _create(name: str, num_classes: int | None, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=num_classes, pretrained=pretrained, **overrides)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        unknown = str(error).rpartition("argument ")[2]
        raise ValueError(f"{name} has no option {unknown}: see vismoe.create_model for the options") from error
