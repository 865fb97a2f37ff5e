"""Parameters of google-research/vmoe (JAX) as models: token choice; other families follow."""

from collections.abc import Mapping
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

    def expect(self, name: str, *accepted: Any) -> None:
        value = self.values.pop(name, accepted[0])
        if value not in accepted:
            raise ValueError(f"{self.place}.{name}={value!r}: accepted are {', '.join(map(repr, accepted))}")

    def done(self) -> None:
        if self.values:
            raise ValueError(f"{self.place} has fields that are not understood: {', '.join(self.values)}")


def from_reference(params: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
    """Builds a model from parameters of the reference, with the capacity and groups of its configuration in both modes.

    **Arguments:** `params`: {"/"-joined name: array}, with or without a leading "params/"; `config`: `model_class` and
    `model`, the keyword arguments of its VisionTransformerMoe; `deterministic` (default true): evaluation or training.

    **Returns:** the model, in evaluation mode where deterministic. Its images are (B, 3, H, W), the reference's NHWC.

    **Raises:** ValueError for a configuration or parameters that are not understood, by name.
    """
    arrays = {name.removeprefix("params/"): np.asarray(array) for name, array in params.items()}
    if (model_class := config.get("model_class", MODEL_CLASS)) != MODEL_CLASS:
        raise ValueError(f"model_class={model_class!r}: accepted is {MODEL_CLASS!r}")
    arguments = _arguments(_Fields(config["model"], "model"), arrays)
    model: SparseVisionTransformer = timm.create_model(ANY_SHAPE, **arguments)
    state = _state(arrays, model)
    expected = {name for name in model.state_dict() if ".balance_" not in name}
    if missing := sorted(expected - set(state)):
        raise ValueError(f"parameters are missing for {', '.join(missing)}")
    model.load_state_dict(state)
    return model.train(not config.get("deterministic", True))


def _arguments(model: _Fields, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    encoder = _Fields(model.take("encoder", {}), "model.encoder")
    model.expect("classifier", "token")
    model.take("head_bias_init")
    patch, dim = tuple(model.take("patch_size")), model.take("hidden_size")
    tokens = arrays["Encoder/posembed_input/pos_embedding"].shape[1] - 1
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"the position embedding has {tokens} patches, which is no square")
    arguments = {
        "img_size": (side * patch[0], side * patch[1]),
        "patch_size": patch,
        "in_chans": arrays["embedding/kernel"].shape[2],
        "num_classes": model.take("num_classes") or 0,
        "embed_dim": dim,
        "depth": encoder.take("num_layers"),
        "num_heads": encoder.take("num_heads"),
        "mlp_ratio": encoder.take("mlp_dim") / dim,
        "proj_drop_rate": encoder.take("dropout_rate", 0.0),
        "attn_drop_rate": encoder.take("attention_dropout_rate", 0.0),
        "act_layer": "gelu_tanh",
        "representation_size": model.take("representation_size") or 0,
        "weight_init": "jax",
    }
    moe = _Fields(encoder.take("moe") or {}, "model.encoder.moe")
    if layers := moe.take("layers"):
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
    experts, k, group = moe.take("num_experts"), router.take("num_selected_experts", 1), moe.take("group_size")
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
    # What only its own hardware or initialisation needs, and dropout of experts, which equals the dense MLPs'.
    for fields, names in (
        (moe, ("dropout_rate", "split_rngs", "partition_spec", "dtype")),
        (router, ("dtype", "deterministic")),
        (dispatcher, ("partition_spec", "einsum_precision", "capacity_factor", "capacity_ceil_or_round")),
        (dispatcher, ("capacity_multiple_of",)),
    ):
        for name in names:
            fields.take(name)
    for fields in (moe, router, dispatcher):
        fields.done()
    return arguments


def _state(arrays: dict[str, np.ndarray], model: SparseVisionTransformer) -> dict[str, Tensor]:
    """The reference's parameter tree under timm's names and in its layouts."""
    left = {name: torch.tensor(array) for name, array in arrays.items()}
    dim, state = model.embed_dim, {}

    def linear(source: str, target: str, stacked: bool = False) -> None:
        state[f"{target}.weight"] = left.pop(f"{source}/kernel").mT.contiguous()
        state[f"{target}.bias"] = left.pop(f"{source}/bias")

    def norm(source: str, target: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = left.pop(f"{source}/scale"), left.pop(f"{source}/bias")

    try:
        # (height, width, channels, dim) -> (dim, channels, height, width)
        state["patch_embed.proj.weight"] = left.pop("embedding/kernel").permute(3, 2, 0, 1).contiguous()
        state["patch_embed.proj.bias"] = left.pop("embedding/bias")
        state["cls_token"] = left.pop("cls")
        state["pos_embed"] = left.pop("Encoder/posembed_input/pos_embedding")
        norm("Encoder/encoder_norm", "norm")
        for number, block in enumerate(model.blocks):
            source, target = f"Encoder/encoderblock_{number}", f"blocks.{number}"
            norm(f"{source}/LayerNorm_0", f"{target}.norm1")
            norm(f"{source}/LayerNorm_1", f"{target}.norm2")
            attention = f"{source}/SelfAttention"
            # query, key, value kernels (dim, heads, head_dim), output (heads, head_dim, dim)
            parts = [(left.pop(f"{attention}/{part}/kernel"), left.pop(f"{attention}/{part}/bias")) for part in _QKV]
            state[f"{target}.attn.qkv.weight"] = torch.cat([kernel.reshape(dim, -1).T for kernel, _ in parts])
            state[f"{target}.attn.qkv.bias"] = torch.cat([bias.reshape(-1) for _, bias in parts])
            state[f"{target}.attn.proj.weight"] = left.pop(f"{attention}/out/kernel").reshape(-1, dim).T.contiguous()
            state[f"{target}.attn.proj.bias"] = left.pop(f"{attention}/out/bias")
            if hasattr(block.mlp, "router"):
                state[f"{target}.mlp.router.weight"] = left.pop(f"{source}/Moe/Router/dense/kernel").T.contiguous()
                linear(f"{source}/Moe/Mlp/Dense_0", f"{target}.mlp.experts.up")
                linear(f"{source}/Moe/Mlp/Dense_1", f"{target}.mlp.experts.down")
            else:
                linear(f"{source}/Mlp/Dense_0", f"{target}.mlp.fc1")
                linear(f"{source}/Mlp/Dense_1", f"{target}.mlp.fc2")
        if model.head_hidden_size != model.embed_dim or not isinstance(model.representation, nn.Identity):
            linear("pre_logits", "representation.0")
        if model.num_classes:
            linear("head", "head")
    except KeyError as error:
        raise ValueError(f"the parameters have no {error.args[0]!r}, which the configuration asks for") from error
    if left:
        raise ValueError(f"the configuration has no place for the parameters {', '.join(sorted(left))}")
    return state


_QKV = ("query", "key", "value")
