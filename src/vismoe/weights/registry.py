"""Presets as timm's entry points: `timm.create_model(name)` works once vismoe is imported."""

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

from .fitting import Stored, architecture
from .folders.format import CONFIG
from .published import PUBLISHER, Published, tagged, tags_of
from .sources import parse_architecture

ANY_SHAPE = "vmoe_vit"
"""The entry point of networks that are no preset: everything is in its arguments."""

SOURCES = ("source", "file", "url", "hf_hub_id", "state_dict")
"""Fields of timm's configurations that say where weights are."""

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


def _inputs(preset: Preset) -> dict[str, Any]:
    stem = {"first_conv": "patch_embed.backbone.0.conv"} if preset.arguments.get("stem") == "conv" else {}
    return {"input_size": (3, preset.image, preset.image)} | stem


def _described(preset: Preset, published: Published) -> dict[str, Any]:
    """What timm is told of published weights. It never reads the address itself: see the entry points."""
    size = published.image_size
    told = {"input_size": (3, size, size), "num_classes": published.classes, "tag": published.tag}
    origin = {"url": f"{PUBLISHER}/{published.name}.index", "origin_url": "https://github.com/google-research/vmoe"}
    return PREPROCESSING | _inputs(preset) | published.preprocessing | told | origin


def _configurations() -> dict[str, dict[str, Any]]:
    """By timm's names. Behind all others, with a star, stands what a name without a tag means, which for timm would
    else be one of the tags."""
    found = {ANY_SHAPE: PREPROCESSING | {"input_size": (3, 224, 224)}}
    for name, preset in PRESETS.items():
        found |= {f"{name}.{tag}": _described(preset, published) for tag, published in tags_of(name).items()}
        found[f"{name}.*"] = PREPROCESSING | _inputs(preset)
    return found


default_cfgs = generate_default_cfgs(_configurations())


_provide: Callable[[Published], Path]


def provide_weights(provide: Callable[[Published], Path]) -> None:
    """Sets what has the model folder of published weights. It converts files into networks that are built here, so it
    is handed down by whoever is able to (`pretrained.py`)."""
    global _provide
    _provide = provide


def _register(name: str, defaults: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **arguments: Any) -> nn.Module:
        own = dict(defaults)
        arguments = {key: value for key, value in arguments.items() if value is not None}
        change: Any = checkpoint_filter_fn
        published = _published(name, arguments)
        has_source = _has_source(arguments, published)
        if published is not None:
            own |= architecture(PRESETS[name], published)
            arguments["pretrained_cfg"] = _described(PRESETS[name], published)
        if pretrained and not has_source:
            if published is None:
                raise ValueError(_no_weights(name))
            stored = Stored(_provide(published))
            own |= stored.sizes
            arguments["pretrained_cfg"] |= stored.configuration
            change = stored.fit
        arguments = own | arguments
        model = build_model_with_cfg(
            SparseVisionTransformer,
            name,
            pretrained,
            pretrained_filter_fn=change,
            feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"},
            **arguments,
        )
        if model.in_chans != 3:
            grey = (0.5,) * model.in_chans
            model.pretrained_cfg |= {"mean": grey, "std": grey, "input_size": (model.in_chans, *_image_size(model))}
        # timm keeps what it was called with; a model folder is to hold everything that shapes the network.
        model._model_args = own
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    register_model(entry_point)


def _published(name: str, arguments: dict[str, Any]) -> Published | None:
    """The published weights that timm's argument names, by their tag or by what `timm.get_pretrained_cfg` gives.

    **Raises:** ValueError for a tag that the preset has not.
    """
    if isinstance(given := arguments.get("pretrained_cfg"), str):
        return tagged(name, given)
    told = _told(arguments)
    elsewhere = any(told.get(source) for source in SOURCES if source != "url")
    return None if given is None or elsewhere else tags_of(name).get(told.get("tag") or "")


def _has_source(arguments: dict[str, Any], published: Published | None) -> bool:
    """Whether weights are to be read from elsewhere than where they are published."""
    told = {} if published else _told(arguments)
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    return any(told.get(source) or overlay.get(source) for source in SOURCES)


def _told(arguments: dict[str, Any]) -> dict[str, Any]:
    given = arguments.get("pretrained_cfg") or {}
    return given if isinstance(given, dict) else vars(given)


def _no_weights(name: str) -> str:
    if tags := tags_of(name):
        return f"{name} has weights by tags alone: use {' or '.join(f'{name}.{tag}' for tag in tags)}"
    return f"no weights are published for {name}: use pretrained=False, or a model folder's path"


def _image_size(model: Any) -> tuple[int, int]:
    height, width = model._traits["img_size"]
    return height, width


for _name, _preset in PRESETS.items():
    _register(_name, _preset.arguments)
_register(ANY_SHAPE, {"weight_init": "jax"})


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names of the presets that match a shell pattern, such as "*_e8"; with `pretrained`, or where the pattern has a
    dot, of published weights: PRESET.TAG."""
    if not pretrained and "." not in pattern:
        return [name for name in PRESETS if fnmatch.fnmatch(name, pattern)]
    names = [f"{preset}.{tag}" for preset in PRESETS for tag in tags_of(preset)]
    return [name for name in names if fnmatch.fnmatch(name if "." in pattern else name.partition(".")[0], pattern)]


def create_model(name: str, num_classes: int | None = None, pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Builds a preset, as `timm.create_model(name)` does once vismoe is imported.

    **Arguments:** `name`: one of `list_models()`; one of `list_models(pretrained=True)`, PRESET.TAG, for published
    weights' network; or `timm:NAME` for any other network of timm's; `num_classes`: 0 for features, by default as many
    as the weights have (presets: 1000); `pretrained`: with the weights, which are downloaded and converted once into
    the cache (`VISMOE_WEIGHTS_URL`, see docs/convert.md); another number of classes has a new classifier then, images
    of another size resized position embeddings; `overrides`: fields of `vismoe.vit.MoEConfig` (num_experts=,
    experts_per_token=, moe_layers=, balance=, …) and arguments of timm's VisionTransformer (img_size=, patch_size=,
    in_chans=, drop_path_rate=, …).

    **Raises:** ValueError for an unknown name (near matches are listed), for arguments that do not fit, and for weights
    that cannot be had.
    """
    source = parse_architecture(name)
    if source.kind == "timm":
        return _of_timm(source.name, num_classes, pretrained, overrides)
    if overrides.get("experts") == "low-rank":
        raise ValueError('experts="low-rank" differ from a trained MLP: vismoe.upcycle makes them of a trained model')
    return _create(name, num_classes, pretrained, overrides)


def _of_timm(name: str, num_classes: int | None, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    """A network of timm's own for images of `img_size`, which those that take any size are not told, and with as many
    channels as asked for."""
    defaults, channels = timm.get_pretrained_cfg(name), overrides.get("in_chans", 3)
    size = (overrides["img_size"],) * 2 if "img_size" in overrides else defaults.input_size[1:]
    overlay: dict[str, Any] = {"input_size": (channels, *size)}
    if "img_size" in overrides:
        overlay["crop_pct"] = 1.0  # that of its own size is not to be had at others
    if channels != 3:
        overlay |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    if not defaults.fixed_input_size:
        overrides = {key: value for key, value in overrides.items() if key != "img_size"}
    create = partial(_create, name, num_classes, pretrained, overrides | {"pretrained_cfg_overlay": overlay})
    if not pretrained:
        return create()
    if defaults.hf_hub_id:
        download(defaults.hf_hub_id, (CONFIG,))  # where that fails it does so at once, not after timm's many tries
    return downloading(f"timm:{name}", create)


def _create(name: str, num_classes: int | None, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=num_classes, pretrained=pretrained, **overrides)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        unknown = str(error).rpartition("argument ")[2]
        raise ValueError(f"{name} has no option {unknown}") from error
