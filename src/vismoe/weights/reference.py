"""Parameters of google-research/vmoe (JAX) as models: token choice; other families follow."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vismoe.vit import SparseVisionTransformer

from .registry import ANY_SHAPE

MODEL_CLASS = "vmoe.nn.vit_moe.VisionTransformerMoe"


class _Fields:
    """A configuration read field by field, so that what nobody read is an error and not a silent difference."""

    def __init__(self, values: Mapping[str, Any], place: str):
        self.values, self.place = dict(values), place

    def take(self, name: str, default: Any = None) -> Any:
        return self.values.pop(name, default)

    def need(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise ValueError(f"{self.place} has no {name}, which the model cannot be built without")
        return self.values.pop(name)

    def expect(self, name: str, *accepted: Any) -> None:
        value = self.values.pop(name, accepted[0])
        if value not in accepted:
            raise ValueError(f"{self.place}.{name}={value!r}: accepted are {', '.join(map(repr, accepted))}")

    def done(self) -> None:
        if self.values:
            raise ValueError(f"{self.place} has fields that are not understood: {', '.join(self.values)}")


@torch.no_grad()
def from_reference(params: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
    """Builds a model from parameters of the reference, with the capacity and groups of its configuration in both modes.

    **Arguments:** `params`: {"/"-joined name: array}, with or without a leading "params/"; `config`: `model_class` and
    `model`, the keyword arguments of its VisionTransformerMoe; `deterministic` (default true): evaluation or training.

    **Returns:** the model, in evaluation mode where deterministic. Its images are (B, 3, H, W), the reference's NHWC.

    **Raises:** ValueError for a configuration or parameters that are missing, not understood or of another shape, by
    the reference's name.
    """
    arrays = {name.removeprefix("params/"): np.asarray(array) for name, array in params.items()}
    if (model_class := config.get("model_class", MODEL_CLASS)) != MODEL_CLASS:
        raise ValueError(f"model_class={model_class!r}: accepted is {MODEL_CLASS!r}")
    arguments = _arguments(_Fields(_Fields(config, "config").need("model"), "model"), arrays)
    model: SparseVisionTransformer = timm.create_model(ANY_SHAPE, **arguments)
    places = dict(_places(model))
    if missing := sorted(set(places) - set(arrays)):
        raise ValueError(f"the configuration asks for parameters that are missing: {', '.join(missing)}")
    if left := sorted(set(arrays) - set(places)):
        raise ValueError(f"the configuration has no place for the parameters {', '.join(left)}")
    for name, place in places.items():
        if arrays[name].shape != place.shape:
            expected = f"the configuration asks for {tuple(place.shape)}"
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, but {expected}")
        place.copy_(torch.tensor(arrays[name]))
    return model.train(not config.get("deterministic", True))


def _arguments(model: _Fields, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    encoder = _Fields(model.need("encoder"), "model.encoder")
    model.expect("classifier", "token")
    model.take("head_bias_init")
    patch, dim = tuple(model.need("patch_size")), model.need("hidden_size")
    # The configuration says neither how large images are nor how many channels they have: the parameters do.
    shape = {name: arrays[name].shape for name in ("embedding/kernel", _POSITIONS) if name in arrays}
    if len(shape.get("embedding/kernel", ())) != 4 or len(shape.get(_POSITIONS, ())) != 3:
        raise ValueError(
            f"parameters embedding/kernel (height, width, channels, {dim}) and {_POSITIONS} (1, tokens, {dim}) "
            f"are needed, but given are {shape or 'neither'}"
        )
    tokens = shape[_POSITIONS][1] - 1
    side = round(max(tokens, 0) ** 0.5)
    if side * side != tokens:
        raise ValueError(f"the position embedding has {tokens} patches, which is no square")
    arguments = {
        "img_size": (side * patch[0], side * patch[1]),
        "patch_size": patch,
        "in_chans": shape["embedding/kernel"][2],
        "num_classes": model.take("num_classes") or 0,
        "embed_dim": dim,
        "depth": encoder.need("num_layers"),
        "num_heads": encoder.need("num_heads"),
        "mlp_ratio": encoder.need("mlp_dim") / dim,
        "proj_drop_rate": encoder.take("dropout_rate", 0.0),
        "attn_drop_rate": encoder.take("attention_dropout_rate", 0.0),
        "act_layer": "gelu_tanh",
        "representation_size": model.take("representation_size") or 0,
        "weight_init": "jax",
    }
    moe = _Fields(encoder.take("moe") or {}, "model.encoder.moe")
    if layers := moe.take("layers"):
        moe.expect("dropout_rate", None, arguments["proj_drop_rate"])
        arguments["moe"] = _moe(moe, layers)
    encoder.expect("position_emb", None, {"name": "learned"})
    encoder.expect("attention_qk_norm", False)
    for name in ("dtype", "deterministic"):
        encoder.take(name), model.take(name)
    encoder.done()
    model.done()
    return arguments


def _moe(moe: _Fields, layers: list[int]) -> dict[str, Any]:
    router = _Fields(moe.take("router", {}), "model.encoder.moe.router")
    dispatcher = _Fields(router.take("dispatcher", {}), "model.encoder.moe.router.dispatcher")
    experts, k, group = moe.need("num_experts"), router.take("num_selected_experts", 1), moe.take("group_size")
    router.expect("name", "NoisyTopExpertsPerItemRouter")
    dispatcher.expect("name", "einsum", "indices")  # two ways of computing the same
    dispatcher.expect("bfloat16", False)
    weights = {name: router.take(f"{name}_loss_weight", 1.0) for name in ("importance", "load")}
    weights["gshard"] = router.take("gshard_loss_weight", 0.0)
    arguments = {
        "moe_layers": list(layers),
        "num_experts": experts,
        "experts_per_token": k,
        "balance": "loss" if any(weights.values()) else "none",
        "loss_weights": weights,
        "noise_std": router.take("noise_std", 1.0),
        "group_size": group,
        "batch_priority": bool(dispatcher.take("batch_priority", False)),
    }
    if (capacity := dispatcher.take("capacity")) is not None:
        # A number of tokens instead of a factor: the factor that rounds to it.
        arguments |= {
            "capacity_factor": capacity * experts / (group * k),
            "capacity_rounding": "round",
            "capacity_multiple_of": 1,
        }
    else:
        arguments["capacity_factor"] = dispatcher.take("capacity_factor")
        arguments["capacity_rounding"] = dispatcher.take("capacity_ceil_or_round", "ceil")
        arguments["capacity_multiple_of"] = dispatcher.take("capacity_multiple_of", 4) or 1
    # What only its own hardware or initialisation needs.
    for fields, names in (
        (moe, ("split_rngs", "partition_spec", "dtype")),
        (router, ("dtype", "deterministic")),
        (dispatcher, ("partition_spec", "einsum_precision", "capacity_factor", "capacity_ceil_or_round")),
        (dispatcher, ("capacity_multiple_of",)),
    ):
        for name in names:
            fields.take(name)
    for fields in (moe, router, dispatcher):
        fields.done()
    return arguments


_POSITIONS = "Encoder/posembed_input/pos_embedding"


@torch.no_grad()
def _places(model: SparseVisionTransformer) -> Iterator[tuple[str, Tensor]]:
    """Each of the reference's parameters by name, as a view of the model's own that has the reference's layout."""

    def linear(name: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}/kernel", layer.weight.mT
        if getattr(layer, "bias", None) is not None:  # a router has none
            yield f"{name}/bias", layer.bias

    def norm(name: str, module: nn.LayerNorm) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}/scale", module.weight
        yield f"{name}/bias", module.bias

    yield "embedding/kernel", model.patch_embed.proj.weight.permute(2, 3, 1, 0)
    yield "embedding/bias", model.patch_embed.proj.bias
    yield "cls", model.cls_token
    yield _POSITIONS, model.pos_embed
    yield from norm("Encoder/encoder_norm", model.norm)
    for number, block in enumerate(model.blocks):
        name, attention, mlp = f"Encoder/encoderblock_{number}", block.attn, block.mlp
        yield from norm(f"{name}/LayerNorm_0", block.norm1)
        yield from norm(f"{name}/LayerNorm_1", block.norm2)
        heads = (attention.num_heads, attention.head_dim)
        for part, weight, bias in zip(
            ("query", "key", "value"), attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True
        ):
            yield f"{name}/SelfAttention/{part}/kernel", weight.T.unflatten(1, heads)
            yield f"{name}/SelfAttention/{part}/bias", bias.unflatten(0, heads)
        yield f"{name}/SelfAttention/out/kernel", attention.proj.weight.T.unflatten(0, heads)
        yield f"{name}/SelfAttention/out/bias", attention.proj.bias
        if hasattr(mlp, "router"):
            yield from linear(f"{name}/Moe/Router/dense", mlp.router)
            yield from linear(f"{name}/Moe/Mlp/Dense_0", mlp.experts.up)
            yield from linear(f"{name}/Moe/Mlp/Dense_1", mlp.experts.down)
        else:
            yield from linear(f"{name}/Mlp/Dense_0", mlp.fc1)
            yield from linear(f"{name}/Mlp/Dense_1", mlp.fc2)
    if not isinstance(model.representation, nn.Identity):
        yield from linear("pre_logits", model.representation.get_submodule("0"))
    if model.num_classes:
        yield from linear("head", model.head)
