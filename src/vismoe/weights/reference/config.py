"""Configurations of google-research/vmoe (JAX), read as arguments of `SparseVisionTransformer`.

Fields that say how the reference computes, not what, are ignored: types of intermediate values, partitions, precisions.
An unknown field is an error, not a silent difference.
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
    # The final norm stands before the mean, not behind it as timm has it by default.
    "gap": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "map": {"global_pool": "map", "class_token": False},
}


class Fields:
    """A configuration that is read field by field."""

    def __init__(self, values: Mapping[str, Any], place: str):
        self.values, self.place = dict(values), place

    def take(self, name: str, default: Any = None) -> Any:
        return self.values.pop(name, default)

    def inner(self, name: str) -> "Fields":
        return Fields(self.take(name) or {}, f"{self.place}.{name}")

    def need(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise ValueError(f"{self.place} has no {name}, which the model cannot be built without")
        return self.values.pop(name)

    def expect(self, name: str, *accepted: Any) -> Any:
        """One of the accepted values; the first where the field is missing."""
        value = self.values.pop(name, accepted[0])
        if value not in accepted:
            raise ValueError(f"{self.place}.{name}={value!r}: accepted are {', '.join(map(repr, accepted))}")
        return value

    def ignore(self, *names: str) -> None:
        for name in names:
            self.values.pop(name, None)

    def done(self) -> None:
        if self.values:
            raise ValueError(f"{self.place} has fields that are not understood: {', '.join(self.values)}")


def read_config(config: Mapping[str, Any], shapes: Shapes) -> Arguments:
    """Arguments of a model, from `config` and, where it has no entry, from the shapes of parameters.

    **Raises:** ValueError for a configuration that is not understood, by the reference's names.
    """
    model = Fields(Fields(config, "config").need("model"), "model")
    is_ensemble = _is_ensemble(config, model)
    encoder = Fields(model.need("encoder"), "model.encoder")
    classifier = CLASSIFIERS[model.expect("classifier", *CLASSIFIERS)]
    dim = model.need("hidden_size")
    # The configuration does not say how many channels images have.
    if len(shapes.get(PATCHES, ())) != 4:
        raise ValueError(f"parameter {PATCHES} (height, width, channels, {dim}) is needed: {shapes.get(PATCHES)}")
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
        # The reference's ensemble hands the field on to the MAP head, but not to its blocks.
        "qk_norm": ("scale-pool" if is_ensemble else "scale") if encoder.take("attention_qk_norm") else False,
        "representation_size": model.take("representation_size") or 0,
        "head_bias_init": model.take("head_bias_init", 0.0),
        "weight_init": "jax",
    }
    arguments |= classifier
    positions = encoder.inner("position_emb")
    if is_ensemble:
        positions = Fields({}, positions.place)  # the reference ignores them here: it always learns positions
    arguments |= _positions(positions, arguments, shapes, config.get("image_size"))
    moe = encoder.inner("moe")
    ensemble = {"ensemble_size": moe.need("ensemble_size")} if is_ensemble else {}
    # As in the reference, numbers beyond the last block name nothing.
    if layers := [number for number in moe.take("layers") or () if 0 <= number < arguments["depth"]]:
        dense = {"mlp_dim": mlp_dim, "dropout_rate": dropout}
        arguments["moe"] = {"moe_layers": layers} | ensemble | _moe(moe, dense, is_evaluation(config), shapes)
    model.ignore("head_kernel_zero_init")  # how a new head is drawn
    for fields in (encoder, model):
        fields.ignore("dtype", "deterministic")
        fields.done()
    return arguments


def _is_ensemble(config: Mapping[str, Any], model: Fields) -> bool:
    """Whether the model is of the ensemble's class; released configurations have the class in the model's name."""
    classes = {name.rpartition(".")[2]: name for name in (MODEL_CLASS, ENSEMBLE_CLASS)}
    name = model.expect("name", None, *classes)
    model_class = config.get("model_class", classes.get(name, MODEL_CLASS))
    if model_class not in classes.values():
        raise ValueError(f"model_class={model_class!r}: accepted are {', '.join(map(repr, classes.values()))}")
    if name is not None and classes[name] != model_class:
        raise ValueError(f"model.name={name!r} is not model_class={model_class!r}")
    return bool(model_class == ENSEMBLE_CLASS)


def is_evaluation(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of evaluation, which is the default."""
    return bool(config.get("deterministic", Fields(config, "config").need("model").get("deterministic", True)))


def _ratio(mlp_dim: int, dim: int) -> float:
    """timm's mlp_ratio: times `dim`, rounded down, it is exactly `mlp_dim`."""
    ratio = mlp_dim / dim
    return ratio if int(dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _positions(fields: Fields, arguments: Arguments, shapes: Shapes, image_size: Any) -> Arguments:
    """Position embedding and image size. The reference's configuration has no image size. A learned embedding fits one
    size, a square unless `image_size`, an entry of ours, says otherwise; any other embedding fits any size."""
    patch = arguments["patch_size"]
    name = fields.expect("name", "learned", "sincos2d", "none")
    result: Arguments = {"pos_embed": {"learned": "learn"}.get(name, name)}
    if name == "sincos2d":
        fields.ignore("h", "w")  # the reference sets these itself
        if (temperature := fields.take("temperature")) is not None:
            result["pos_embed_temperature"] = temperature
    fields.done()
    if name != "learned":
        size = image_size or tuple(max(224 // step, 1) * step for step in patch)
        return result | {"img_size": tuple(size), "dynamic_img_size": True}
    if len(shapes.get(POSITIONS, ())) != 3:
        raise ValueError(
            f"parameter {POSITIONS} (1, tokens, {arguments['embed_dim']}) is needed: {shapes.get(POSITIONS)}"
        )
    tokens = shapes[POSITIONS][1] - arguments["class_token"]
    side = round(max(tokens, 0) ** 0.5)
    if image_size is None and side * side != tokens:
        raise ValueError(
            f"the position embedding has {tokens} patches, which is no square: add image_size, "
            "height and width in pixels, to the configuration"
        )
    return result | {"img_size": tuple(image_size or (side * step for step in patch))}


def _moe(moe: Fields, dense: Mapping[str, Any], deterministic: bool, shapes: Shapes) -> Arguments:
    """Fields of `vismoe.vit.MoEConfig`.

    **Arguments:**

    - `moe`: the reference's fields.
    - `dense`: those of the other blocks' MLPs, the default for experts.
    - `deterministic`: whether the configuration is one of evaluation.
    - `shapes`: of the parameters.
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
    moe.ignore("deterministic", "partition_spec")  # the reference sets the former itself
    for fields in (moe, router):
        fields.ignore("dtype")
        fields.done()
    return arguments


def _noise(router: Fields, deterministic: bool, default: float = 1.0) -> float:
    """The noise's standard deviation; 0 where the router says that it is without noise."""
    is_deterministic = router.take("deterministic")
    if is_deterministic is False and deterministic:
        raise ValueError(f"{router.place}.deterministic=False in a configuration of evaluation: noise is for training")
    noise = router.take("noise_std", default)
    return 0.0 if is_deterministic else noise


def _capacity(dispatcher: Fields, choices: int, experts: int) -> Arguments:
    """How many tokens an expert accepts of a group with so many choices."""
    capacity, factor = dispatcher.take("capacity"), dispatcher.take("capacity_factor")
    rounding = dispatcher.expect("capacity_ceil_or_round", "ceil", "round")
    multiple = max(dispatcher.take("capacity_multiple_of", 4) or 1, 1)
    if (capacity is None) == (factor is None):
        raise ValueError(
            f"{dispatcher.place}.capacity={capacity!r}, .capacity_factor={factor!r}: accepted is one of the two"
        )
    if capacity is not None:
        # A number of tokens instead of a factor: the factor that rounds to it.
        factor, rounding, multiple = capacity * experts / choices, "round", 1
    return {"capacity_factor": factor, "capacity_rounding": rounding, "capacity_multiple_of": multiple}


def _dispatcher(router: Fields, *names: str) -> tuple[Fields, Arguments]:
    """The dispatcher's fields, and arguments from those that all routers' dispatchers have. The accepted `names` are
    different ways of computing the same."""
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
    """As many slots as the parameters have; the reference draws them for the tokens that it is built with."""
    slots, factor = router.take("num_slots"), router.take("capacity_factor", 1.0)
    mu = next((shape for name, shape in shapes.items() if name.endswith("/Router/mu")), ())
    if slots is None:
        if factor is None:
            raise ValueError(f"{router.place}.num_slots=None, .capacity_factor=None: accepted is one of the two")
        slots = mu[2] if len(mu) == 3 else compute_capacity(group, experts, factor, "round", 1)
    dispatcher = router.inner("dispatcher")
    exchange = bool(dispatcher.take("bfloat16", True))  # ours: the reference always rounds
    dispatcher.done()
    router.ignore("partition_spec", "precision", "compute_similarity_metrics", "mu_init", "scale_init")
    noise = _noise(router, deterministic, 0.0)
    return {"router": "soft", "slots_per_expert": slots, "noise_std": noise, "bfloat16_exchange": exchange}


ROUTERS: dict[str, Callable[[Fields, int, int, bool, Shapes], Arguments]] = {
    "NoisyTopExpertsPerItemRouter": _top_experts_per_item,
    "NoisyTopItemsPerExpertRouter": _top_items_per_expert,
    "SoftRouter": _soft,
}
"""Functions by the reference's name of a router. Each takes the router's fields, the number of experts, the group's
size, whether the configuration is one of evaluation, and the parameters' shapes; it returns fields of
`vismoe.vit.MoEConfig`."""
