"""The networks of the study: one trunk, grown dense in three ways or made sparse, all with one kind of classifier."""

from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

import vismoe
from vismoe.vit import cost
from vismoe.weights import data_config

from .tasks import PIXELS

DEPTH, HEAD_DIM, CLASSIFIER, PATCH, MLP_RATIO = 4, 32, 256, 6, 4
DENSE, SPARSE = "vmoe_pico_patch2_8_dense", "vmoe_pico_patch2_8_every2_e8"


@dataclass(frozen=True)
class Family:
    """A network by what it changes of the trunk. `grow`: how it does `times` the trunk's multiplications, "width",
    "depth" or "mlp"; `moe`: what of a sparse layer is said, hidden widths as shares of the MLP's, None: it is dense."""

    name: str
    times: float = 1.0
    grow: str = ""
    moe: dict[str, Any] | None = field(default=None, hash=False)

    def dim(self, width: int) -> int:
        """How wide it is where the trunk is so wide."""
        return round(width * self.times**0.5 / HEAD_DIM) * HEAD_DIM if self.grow == "width" else width

    def model(self, width: int, classes: int) -> nn.Module:
        """The network with random weights."""
        dim, depth, ratio = self.dim(width), DEPTH, float(MLP_RATIO)
        if self.grow == "depth":
            depth = round(DEPTH * self.times)
        elif self.grow == "mlp":
            # Of a block's multiplications two thirds are its MLP's, a third its attention's, but for tokens × tokens.
            ratio = MLP_RATIO * (1 + 1.5 * (self.times - 1))
        arguments: dict[str, Any] = {
            "img_size": PIXELS,
            "patch_size": PATCH,
            "embed_dim": dim,
            "depth": depth,
            "num_heads": dim // HEAD_DIM,
            "mlp_ratio": ratio,
            "representation_size": CLASSIFIER,
            # The mean of the tokens: of the last block's MLP a class token alone would be all that is read.
            "class_token": False,
            "global_pool": "avg",
            # Smaller positions than the preset's, and norms of queries and keys: with each of them it learns sooner.
            "pos_embed_std": 0.02,
            "qk_norm": "scale",
        }
        moe = {
            name: round(value * MLP_RATIO * width) if name.endswith("hidden_dim") else value
            for name, value in (self.moe or {}).items()
        }
        return vismoe.create_model(DENSE if self.moe is None else SPARSE, num_classes=classes, **arguments | moe)


@dataclass(frozen=True)
class Convolutional(Family):
    """timm's small MobileNetV3 with its own classifier, shown the pictures at twice their size: it does about what the
    trunk of width 64 does."""

    def model(self, width: int, classes: int) -> nn.Module:
        config = {"input_size": (3, 2 * PIXELS, 2 * PIXELS), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
        return timm.create_model("mobilenetv3_small_100", num_classes=classes, pretrained_cfg_overlay=config)


def multiplications(model: nn.Module) -> tuple[int, int]:
    """Of the trunk and of the classifier, per image."""
    whole = cost(model, data_config(model)["input_size"]).macs
    tops = [getattr(model, name, None) for name in ("representation", "head", "classifier")]
    classifier = sum(
        layer.weight.numel()
        for top in tops
        if isinstance(top, nn.Module)
        for layer in top.modules()
        if isinstance(layer, nn.Linear)
    )
    return whole - classifier, classifier


def learned(num_experts: int, **more: Any) -> dict[str, Any]:
    return {"num_experts": num_experts, "moe_layers": "every-2"} | more


DENSE_1 = Family("dense 1×")
SPARSE_32 = Family("sparse E=32", moe=learned(32))
HASH_32 = Family("sparse E=32, hash", moe=learned(32, router="hash"))
GROWN = [Family(f"dense {times}× {grow}", times, grow) for times in (2, 4) for grow in ("width", "depth", "mlp")]

E_8, E_128 = (Family(f"sparse E={number}", moe=learned(number)) for number in (8, 128))
SHARED = Family(
    "sparse E=32, half as wide, and a shared half",
    moe=learned(32, shared=True) | dict.fromkeys(("shared_hidden_dim", "expert_hidden_dim"), 0.5),
)
FINE = Family("sparse E=64, half as wide, k=2", moe=learned(64, experts_per_token=2, expert_hidden_dim=0.5))
SIGMOID_32 = Family("sparse E=32, sigmoid gates", moe=learned(32, router="sigmoid"))
RANDOM_32 = Family("sparse E=32, random", moe=learned(32, router="random"))
AS_MANY_PARAMETERS = Family("dense, as many parameters as sparse E=32", 12.25, "width")
CNN = Convolutional("CNN")
