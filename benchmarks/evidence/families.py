"""The networks of the study: one trunk, grown dense in three ways or made sparse, all with one kind of classifier."""

from dataclasses import dataclass
from typing import Any

from torch import nn

import vismoe
from vismoe.vit import cost

from .tasks import PIXELS

DEPTH, HEAD_DIM, CLASSIFIER, PATCH = 4, 32, 256, 6
DENSE, SPARSE = "vmoe_pico_patch2_8_dense", "vmoe_pico_patch2_8_every2_e8"


@dataclass(frozen=True)
class Family:
    """A network by what it changes of the trunk. `grow`: how it does `times` the trunk's multiplications, "width",
    "depth" or "mlp"; `moe`: what of a sparse layer is said, None: it is dense."""

    name: str
    times: float = 1.0
    grow: str = ""
    moe: dict[str, Any] | None = None

    def model(self, width: int, classes: int) -> nn.Module:
        """The network with random weights."""
        dim, depth, ratio = width, DEPTH, 4.0
        if self.grow == "width":
            dim = round(width * self.times**0.5 / HEAD_DIM) * HEAD_DIM
        elif self.grow == "depth":
            depth = round(DEPTH * self.times)
        elif self.grow == "mlp":
            # Of a block's multiplications two thirds are its MLP's, a third its attention's, but for tokens × tokens.
            ratio = 4 * (1 + 1.5 * (self.times - 1))
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
        }
        return vismoe.create_model(
            DENSE if self.moe is None else SPARSE, num_classes=classes, **arguments | (self.moe or {})
        )


def multiplications(model: nn.Module) -> tuple[int, int]:
    """Of the trunk and of the classifier, per image."""
    whole = cost(model, (3, PIXELS, PIXELS)).multiplications
    classifier = sum(
        layer.weight.numel()
        for part in (model.representation, model.head)
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
    )
    return whole - classifier, classifier


def learned(num_experts: int, **more: Any) -> dict[str, Any]:
    return {"num_experts": num_experts, "moe_layers": "every-2"} | more


DENSE_1 = Family("dense 1×")
SPARSE_32 = Family("sparse E=32", moe=learned(32))
HASH_32 = Family("sparse E=32, hash", moe=learned(32, router="hash"))
GROWN = [Family(f"dense {times}× {grow}", times, grow) for times in (2, 4) for grow in ("width", "depth", "mlp")]
