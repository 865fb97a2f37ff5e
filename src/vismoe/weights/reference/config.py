"""Reads configurations of google-research/vmoe (JAX) as arguments of `SparseVisionTransformer`.

Fields that do not change what is computed are ignored: dtypes of intermediate values, partitions, precisions. An
unknown field is an error.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from timm.layers import to_2tuple

from vismoe.moe import compute_capacity

MODEL_CLASS = "vmoe.nn.vit_moe.VisionTransformerMoe"
ENSEMBLE_CLASS = "vmoe.nn.vit_moe_ensemble.VisionTransformerMoeEnsemble"
POSITIONS = "Encoder/posembed_input/pos_embedding"
PATCHES = "embedding/kernel"

Arguments = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

CLASSIFIERS: dict[str, Arguments] = {
    "token": {"global_pool": "token", "class_token": True},
    # The final norm is before the mean; timm's default is after it.
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "map": {"global_pool": "map", "class_token": False},
}


class Fields:
    """Reads a configuration field by field."""

    def __init__(self, values: Mapping[str, Any], place: str):
        self.values, self.place = dict(values), place

    def take(self, name: str, default: Any = None) -> Any:
        return self.values.pop(name, default)

    def inner(self, name: str) -> "Fields":
        return Fields(self.take(name) or {}, f"{self.place}.{name}")

    def need(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise ValueError(f"{self.place} has no {name}, which is required")
        return self.values.pop(name)

    def expect(self, name: str, *accepted: Any) -> Any:
        """One of the accepted values; the first if the field is missing."""
        value = self.values.pop(name, accepted[0])
        if value not in accepted:
            raise ValueError(f"{self.place}.{name}={value!r}: accepted are {', '.join(map(repr, accepted))}")
        return value

    def ignore(self, *names: str) -> None:
        for name in names:
            self.values.pop(name, None)

    def done(self) -> None:
        if self.values:
            raise ValueError(f"{self.place} has unknown fields: {', '.join(self.values)}")


def read_config(config: Mapping[str, Any], shapes: Shapes) -> Arguments:
    """Reads the arguments of a model.

    **Arguments:**

    - `config`: the reference's configuration.
    - `shapes`: shapes of the parameters, for what the configuration lacks.

    **Raises:** ValueError, with the reference's name, for a field that is missing, unknown or has an unknown value.
    """
    model = Fields(Fields(config, "config").need("model"), "model")
    is_ensemble = _is_ensemble(config, model)
    encoder = Fields(model.need("encoder"), "model.encoder")
    classifier = CLASSIFIERS[model.expect("classifier", *CLASSIFIERS)]
    dim = model.need("hidden_size")
    # The configuration has no number of channels.
    if len(shapes.get(PATCHES, ())) != 4:
        raise ValueError(
            f"parameter {PATCHES} has shape {shapes.get(PATCHES)}, expected (height, width, channels, {dim})"
        )
    arguments = {
        "patch_size": to_2tuple(model.need("patch_size")),
        "in_chans": shapes[PATCHES][2],
        "num_classes": model.take("num_classes") or 0,
        "embed_dim": dim,
        "depth": encoder.need("num_layers"),
        "num_heads": encoder.need("num_heads"),
        "mlp_ratio": _ratio(mlp_dim := encoder.need("mlp_dim"), dim),
        "proj_drop_rate": (dropout := encoder.take("dropout_rate", 0.0)),
        "pos_drop_rate": dropout,
        "attn_drop_rate": encoder.take("attention_dropout_rate", 0.0),
        "act_layer": "gelu_tanh",
        # The reference's ensemble passes the field to the MAP head, but not to its blocks.
        "qk_norm": ("scale-pool" if is_ensemble else "scale") if encoder.take("attention_qk_norm") else False,
        "representation_size": model.take("representation_size") or 0,
        "head_bias_init": model.take("head_bias_init", 0.0),
        "weight_init": "jax",
    }
    arguments |= classifier
    positions = encoder.inner("position_emb")
    if is_ensemble:
        positions = Fields({}, positions.place)  # the reference's ensemble always has learned positions
    arguments |= _positions(positions, arguments, shapes, config.get("image_size"))
    moe = encoder.inner("moe")
    ensemble = {"ensemble_size": moe.need("ensemble_size")} if is_ensemble else {}
    # As in the reference, numbers beyond the last block are ignored.
    if layers := [number for number in moe.take("layers") or () if 0 <= number < arguments["depth"]]:
        dense = {"mlp_dim": mlp_dim, "dropout_rate": dropout}
        arguments["moe"] = {"moe_layers": layers} | ensemble | _moe(moe, dense, is_evaluation(config), shapes)
    model.ignore("head_kernel_zero_init")  # initialisation of a new head
    for fields in (encoder, model):
        fields.ignore("dtype", "deterministic")
        fields.done()
    return arguments


def _is_ensemble(config: Mapping[str, Any], model: Fields) -> bool:
    """Whether the model is an ensemble. Released configurations have the class in the model's name."""
    classes = {name.rpartition(".")[2]: name for name in (MODEL_CLASS, ENSEMBLE_CLASS)}
    name = model.expect("name", None, *classes)
    model_class = config.get("model_class", classes.get(name, MODEL_CLASS))
    if model_class not in classes.values():
        raise ValueError(f"model_class={model_class!r}: accepted are {', '.join(map(repr, classes.values()))}")
    if name is not None and classes[name] != model_class:
        raise ValueError(f"model.name={name!r} contradicts model_class={model_class!r}: remove one of them")
    return bool(model_class == ENSEMBLE_CLASS)


def is_evaluation(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is for evaluation, which is the default."""
    return bool(config.get("deterministic", Fields(config, "config").need("model").get("deterministic", True)))


def _ratio(mlp_dim: int, dim: int) -> float:
    """timm's mlp_ratio, for which int(dim * ratio) is exactly `mlp_dim`."""
    ratio = mlp_dim / dim
    return ratio if int(dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _positions(fields: Fields, arguments: Arguments, shapes: Shapes, image_size: Any) -> Arguments:
    """Arguments for position embedding and image size. The reference's configuration has no image size. A learned
    embedding fits one size, a square unless `image_size` (vismoe's entry) is given; other embeddings fit any size."""
    patch = arguments["patch_size"]
    name = fields.expect("name", "learned", "sincos2d", "none")
    result: Arguments = {"pos_embed": {"learned": "learn"}.get(name, name)}
    if name == "sincos2d":
        fields.ignore("h", "w")  # the reference computes these
        if (temperature := fields.take("temperature")) is not None:
            result["pos_embed_temperature"] = temperature
    fields.done()
    if name != "learned":
        size = image_size or tuple(max(224 // step, 1) * step for step in patch)
        return result | {"img_size": tuple(size), "dynamic_img_size": True}
    if len(shapes.get(POSITIONS, ())) != 3:
        raise ValueError(
            f"parameter {POSITIONS} has shape {shapes.get(POSITIONS)}, expected (1, tokens, {arguments['embed_dim']})"
        )
    tokens = shapes[POSITIONS][1] - arguments["class_token"]
    side = round(max(tokens, 0) ** 0.5)
    if image_size is None and side * side != tokens:
        raise ValueError(
            f"the position embedding has {tokens} patches, which is not a square number: add image_size, "
            "height and width in pixels, to the configuration"
        )
    return result | {"img_size": tuple(image_size or (side * step for step in patch))}


def _moe(moe: Fields, dense: Mapping[str, Any], deterministic: bool, shapes: Shapes) -> Arguments:
    """Reads fields of `vismoe.vit.MoEConfig`.

    **Arguments:**

    - `moe`: the reference's fields.
    - `dense`: fields of the dense blocks' MLPs, defaults for the experts.
    - `deterministic`: whether the configuration is for evaluation.
    - `shapes`: shapes of the parameters.
    """
    experts, group = moe.need("num_experts"), moe.need("group_size")
    hidden_dim = moe.take("mlp_dim", dense["mlp_dim"])
    dropout = moe.take("dropout_rate", dense["dropout_rate"])
    split = moe.take("split_rngs", False)
    alike = not (split if isinstance(split, bool) else "params" in split)
    router = moe.inner("router")
    name = router.take("name", "NoisyTopExpertsPerItemRouter")
    kind = name.rpartition(".")[2] if name.startswith("vmoe.") else name
    if kind not in ROUTERS:
        raise ValueError(f"{router.place}.name={name!r}: accepted are {', '.join(map(repr, ROUTERS))}")
    arguments = {
        "num_experts": experts,
        "group_size": group,
        "expert_hidden_dim": 0 if hidden_dim == dense["mlp_dim"] else hidden_dim,
        "expert_dropout": "same" if dropout == dense["dropout_rate"] else dropout,
        "expert_init": "alike" if alike else "apart",
    } | ROUTERS[kind](router, experts, group, deterministic, shapes)
    moe.ignore("deterministic", "partition_spec")  # the reference computes the former
    for fields in (moe, router):
        fields.ignore("dtype")
        fields.done()
    return arguments


def _noise(router: Fields, deterministic: bool, default: float = 1.0) -> float:
    """Standard deviation of the router noise; 0 if the router is deterministic."""
    is_deterministic = router.take("deterministic")
    if is_deterministic is False and deterministic:
        raise ValueError(
            f"{router.place}.deterministic=False in a configuration for evaluation: noise is for training only"
        )
    noise = router.take("noise_std", default)
    return 0.0 if is_deterministic else noise


def _capacity(dispatcher: Fields, choices: int, experts: int) -> Arguments:
    """Arguments for the capacity: how many of a group's `choices` an expert accepts."""
    capacity, factor = dispatcher.take("capacity"), dispatcher.take("capacity_factor")
    rounding = dispatcher.expect("capacity_ceil_or_round", "ceil", "round")
    multiple = max(dispatcher.take("capacity_multiple_of", 4) or 1, 1)
    if (capacity is None) == (factor is None):
        raise ValueError(
            f"{dispatcher.place}.capacity={capacity!r}, .capacity_factor={factor!r}: accepted is exactly one of the two"
        )
    if capacity is not None:
        # Converts the number of tokens to the factor that rounds to it.
        factor, rounding, multiple = capacity * experts / choices, "round", 1
    return {"capacity_factor": factor, "capacity_rounding": rounding, "capacity_multiple_of": multiple}


def _dispatcher(router: Fields, *names: str) -> tuple[Fields, Arguments]:
    """The dispatcher's fields, and arguments from those that all dispatchers have. The accepted `names` are different
    implementations of the same computation."""
    dispatcher = router.inner("dispatcher")
    dispatcher.expect("name", *names)
    dispatcher.ignore("partition_spec", "einsum_precision")
    return dispatcher, {"bfloat16_exchange": bool(dispatcher.take("bfloat16", False))}


def _top_experts_per_item(router: Fields, experts: int, group: int, deterministic: bool, shapes: Shapes) -> Arguments:
    k = router.take("num_selected_experts", 1)
    weights = {name: router.take(f"{name}_loss_weight", 1.0) for name in ("importance", "load")}
    weights["gshard"] = router.take("gshard_loss_weight", 0.0)
    dispatcher, exchange = _dispatcher(router, "einsum", "indices")
    arguments = (
        exchange
        | {
            "router": "top-k",
            "experts_per_token": k,
            "balance": "loss" if any(weights.values()) else "none",
            "loss_weights": weights,
            "noise_std": _noise(router, deterministic),
            "batch_priority": bool(dispatcher.take("batch_priority", False)),
        }
        | _capacity(dispatcher, group * k, experts)
    )
    dispatcher.done()
    return arguments


def _top_items_per_expert(router: Fields, experts: int, group: int, deterministic: bool, shapes: Shapes) -> Arguments:
    dispatcher, exchange = _dispatcher(router, "einsum")
    noise = {"router": "expert-choice", "noise_std": _noise(router, deterministic)}
    arguments = exchange | noise | _capacity(dispatcher, group, experts)
    dispatcher.done()
    return arguments


def _soft(router: Fields, experts: int, group: int, deterministic: bool, shapes: Shapes) -> Arguments:
    """Reads a soft router. The number of slots is that of the parameters; the reference derives it from the tokens."""
    slots, factor = router.take("num_slots"), router.take("capacity_factor", 1.0)
    mu = next((shape for name, shape in shapes.items() if name.endswith("/Router/mu")), ())
    if slots is None:
        if factor is None:
            raise ValueError(f"{router.place}.num_slots=None, .capacity_factor=None: accepted is one of the two")
        slots = mu[2] if len(mu) == 3 else compute_capacity(group, experts, factor, "round", 1)
    dispatcher = router.inner("dispatcher")
    exchange = bool(dispatcher.take("bfloat16", True))  # vismoe's field: the reference always rounds
    dispatcher.done()
    router.ignore("partition_spec", "precision", "compute_similarity_metrics", "mu_init", "scale_init")
    noise = _noise(router, deterministic, 0.0)
    return {"router": "soft", "slots_per_expert": slots, "noise_std": noise, "bfloat16_exchange": exchange}


ROUTERS: dict[str, Callable[[Fields, int, int, bool, Shapes], Arguments]] = {
    "NoisyTopExpertsPerItemRouter": _top_experts_per_item,
    "NoisyTopItemsPerExpertRouter": _top_items_per_expert,
    "SoftRouter": _soft,
}
"""Functions by the reference's router name. Arguments: the router's fields, number of experts, group size, whether the
configuration is for evaluation, shapes of the parameters. They return fields of `vismoe.vit.MoEConfig`."""
