"""Presets as timm's entry points: `timm.create_model(name)` works once vismoe is imported."""

import fnmatch
from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from vismoe.vit import PRESETS, Preset, SparseVisionTransformer

from .download import download, downloading
from .layout import CONFIG

TIMM = "timm:"
ANY_SHAPE = "vmoe_vit"
"""The entry point of networks that are no preset: everything is in its arguments."""

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


default_cfgs = generate_default_cfgs(
    {
        ANY_SHAPE: PREPROCESSING | {"input_size": (3, 224, 224)},
        **{name: PREPROCESSING | _inputs(preset) for name, preset in PRESETS.items()},
    }
)


def _register(name: str, defaults: dict[str, Any]) -> None:
    def entry_point(pretrained: bool = False, **arguments: Any) -> nn.Module:
        if pretrained and not _has_source(arguments):
            raise ValueError(f"no weights are published for {name}: use pretrained=False, or a model folder's path")
        arguments = defaults | {key: value for key, value in arguments.items() if value is not None}
        model = build_model_with_cfg(
            SparseVisionTransformer,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"},
            **arguments,
        )
        if model.in_chans != 3:
            grey = (0.5,) * model.in_chans
            model.pretrained_cfg |= {"mean": grey, "std": grey, "input_size": (model.in_chans, *_image_size(model))}
        # timm keeps what it was called with; a model folder is to hold everything that shapes the network.
        model._model_args = dict(defaults)
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    register_model(entry_point)


def _image_size(model: Any) -> tuple[int, int]:
    height, width = model._traits["img_size"]
    return height, width


def _has_source(arguments: dict[str, Any]) -> bool:
    source = arguments.get("pretrained_cfg")
    return bool(arguments.get("pretrained_cfg_overlay") or (isinstance(source, dict) and source.get("source")))


for _name, _preset in PRESETS.items():
    _register(_name, _preset.arguments)
_register(ANY_SHAPE, {"weight_init": "jax"})


def list_models(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell pattern, such as "*_e8"."""
    return [name for name in PRESETS if fnmatch.fnmatch(name, pattern)]


def create_model(name: str, num_classes: int | None = 1000, pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Builds a preset, as `timm.create_model(name)` does once vismoe is imported.

    **Arguments:** `name`: one of `list_models()`, or `timm:NAME` for any other network of timm's; `num_classes`: 0 for
    features, None for as many as the weights have; `overrides`: fields of `vismoe.vit.MoEConfig` (num_experts=,
    experts_per_token=, moe_layers=, balance=, …) and arguments of timm's VisionTransformer (img_size=, patch_size=,
    in_chans=, drop_path_rate=, …).

    **Raises:** ValueError for an unknown name (near matches are listed) and for arguments that do not fit.
    """
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM), num_classes, pretrained, overrides)
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`vismoe models` lists them"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    if overrides.get("experts") == "low-rank":
        raise ValueError('experts="low-rank" differ from a trained MLP: vismoe.upcycle makes them of a trained model')
    return _create(name, num_classes, pretrained, overrides)


def _of_timm(name: str, num_classes: int | None, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    """A network of timm's own for images of `img_size`, which those that take any size are not told, and with as many
    channels as asked for."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"timm has no model {name!r}{'; did you mean ' * bool(near)}{' or '.join(near)}")
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
    return downloading(f"{TIMM}{name}", create)


def _create(name: str, num_classes: int | None, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=num_classes, pretrained=pretrained, **overrides)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        unknown = str(error).rpartition("argument ")[2]
        raise ValueError(f"{name} has no option {unknown}") from error
