"""The timm entry point of upcycled timm models."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import timm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from vismoe.vit import PRESETS, MoEConfig, SparseVisionTransformer, dense_twin, make_sparse
from vismoe.vit.config import OVERRIDES
from vismoe.vit.weight_decay import FeatureTrunk

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
    """A timm model with sparse layers.

    **Arguments:**

    - `pretrained`: as in timm; default False.
    - `parent`: timm's name of the dense network.
    - `parent_args`: arguments of the dense network; default: none.
    - `moe`: fields of `vismoe.vit.MoEConfig`.
    - `arguments`: further arguments of the dense network.
    """
    if not parent or moe is None:
        raise ValueError(
            f"{UPCYCLED} needs parent= and moe=: vismoe.upcycle makes such networks, vismoe.save writes them"
        )
    model: nn.Module = build_model_with_cfg(
        partial(_build, parent, dict(parent_args or {}), MoEConfig(**moe)),
        UPCYCLED,
        pretrained,
        pretrained_filter_fn=_filter_as_parent,
        feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": FeatureTrunk},
        **arguments,
    )
    return model


def _build(parent: str, parent_args: dict[str, Any], config: MoEConfig, **arguments: Any) -> nn.Module:
    model: nn.Module = timm.create_model(parent, **parent_args | arguments)
    make_sparse(model, config)
    return model


def _filter_as_parent(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Applies timm's own filter of weights for this kind of network, which resizes position embeddings, …"""
    filter_weights = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if filter_weights is None else filter_weights(state, model)


def rebuilding(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """`architecture` and `model_args` that rebuild a network: its own, those of the dense parent if it is dense again,
    or those of the entry point above. A network with a method `model_args`, such as a detector, knows its own.

    **Arguments:**

    - `model`: the network.
    - `config`: timm's configuration of it.
    """
    name, model_args = config["architecture"], dict(config.get("model_args", {}))
    if hasattr(model, "model_args"):
        return {"architecture": name, "model_args": cast(Any, model).model_args()}
    moe = getattr(model, "moe", None)
    if isinstance(model, SparseVisionTransformer):
        arguments = {key: value for key, value in model_args.items() if key not in (*OVERRIDES, "moe", "predictions")}
        if model.predictions != "members":
            arguments["predictions"] = model.predictions
        if moe is not None:
            return {"architecture": name, "model_args": arguments | {"moe": asdict(moe)}}
        sparse = name in PRESETS and "moe" in PRESETS[name].arguments
        return {"architecture": dense_twin(name) if sparse else name, "model_args": arguments}
    model_args.pop("moe", None)
    parent, parent_args = model_args.pop("parent", name), model_args.pop("parent_args", None) or {}
    if moe is None:
        return {"architecture": parent, "model_args": parent_args | model_args}
    arguments = {"parent": parent, "parent_args": parent_args | model_args, "moe": asdict(moe)}
    return {"architecture": UPCYCLED, "model_args": arguments}
