"""Upcycled networks of timm's as an entry point."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from vismoe.vit import PRESETS, MoEConfig, SparseVisionTransformer, dense_twin, make_sparse
from vismoe.vit.config import OVERRIDES

UPCYCLED = "vmoe_upcycled"
default_cfgs: dict[str, Any] = timm.models.generate_default_cfgs({UPCYCLED: {}})


@register_model
def vmoe_upcycled(
    pretrained: bool = False,
    parent: str = "",
    parent_args: Mapping[str, Any] | None = None,
    moe: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """A network of timm's with sparse layers, with weights of its own: `parent`, its name; `parent_args`, its
    arguments; `moe`, fields of `vismoe.vit.MoEConfig`."""
    if not parent or moe is None:
        raise ValueError(
            f"{UPCYCLED} needs parent= and moe=: vismoe.upcycle makes such networks, vismoe.save writes them"
        )
    model: nn.Module = build_model_with_cfg(
        partial(_build, parent, dict(parent_args or {}), MoEConfig(**moe)),
        UPCYCLED,
        pretrained,
        pretrained_filter_fn=_as_parent_filters,
        feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"},
        **arguments,
    )
    return model


def _build(parent: str, parent_args: dict[str, Any], config: MoEConfig, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(parent, **parent_args | arguments)
    make_sparse(model, config)
    return model


def _as_parent_filters(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What timm does to weights of this kind of network before it loads them: position embeddings are resized, …"""
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if change is None else change(state, model)


def rebuilding(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """`architecture` and `model_args` that build a network again, from those that timm writes of it: its own, or those
    of the dense parent that it was, or the entry point's above."""
    name, own = config["architecture"], dict(config.get("model_args", {}))
    moe = getattr(model, "moe", None)
    if isinstance(model, SparseVisionTransformer):
        arguments = {key: value for key, value in own.items() if key not in (*OVERRIDES, "moe", "predictions")}
        if model.predictions != "members":
            arguments["predictions"] = model.predictions
        if moe is not None:
            return {"architecture": name, "model_args": arguments | {"moe": asdict(moe)}}
        sparse = name in PRESETS and "moe" in PRESETS[name].arguments
        return {"architecture": dense_twin(name) if sparse else name, "model_args": arguments}
    own.pop("moe", None)
    parent, inner = own.pop("parent", name), own.pop("parent_args", None) or {}
    if moe is None:
        return {"architecture": parent, "model_args": inner | own}
    arguments = {"parent": parent, "parent_args": inner | own, "moe": asdict(moe)}
    return {"architecture": UPCYCLED, "model_args": arguments}
