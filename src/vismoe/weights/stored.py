"""Published weights, converted, as timm is to load them into a preset's network."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from vismoe.files.record import read_json
from vismoe.moe import BalancedRouter
from vismoe.vit import Preset, SparseVisionTransformer
from vismoe.vit.positions import zoom

from .folders.layout import CONFIG, WEIGHTS
from .published import Published


def architecture(preset: Preset, published: Published) -> dict[str, Any]:
    """Arguments of the network of published weights that are not the preset's, as its configuration has them."""
    own: dict[str, Any] = {"img_size": published.image_size, "act_layer": "gelu_tanh"}
    if not published.representation:
        own["representation_size"] = 0
    return own | ({"moe": preset.arguments["moe"] | published.moe} if "moe" in preset.arguments else {})


class Stored:
    """A model folder of published weights: `sizes`, arguments of the network, and `configuration`, of timm's, that the
    files themselves have, whatever was published about them.

    **Raises:** ValueError for a damaged configuration.
    """

    def __init__(self, folder: Path):
        config = read_json(folder / CONFIG)
        try:
            arguments, told = config["model_args"], config["pretrained_cfg"]
            self.sizes = {name: arguments[name] for name in ("img_size", "in_chans", "representation_size")}
            self.configuration = {
                "file": str(folder / WEIGHTS),
                "input_size": tuple(told["input_size"]),
                "num_classes": config["num_classes"],
            }
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / CONFIG} is no configuration of these weights, delete it: {error!r}") from error

    def fit(self, state: dict[str, Tensor], model: SparseVisionTransformer) -> dict[str, Tensor]:
        """The weights for a network of another image size, classifier, number of channels or balancing.

        **Raises:** ValueError where it differs in anything else.
        """
        own, first = model.state_dict(), str(model.pretrained_cfg["first_conv"])
        if model.pos_embed is not None and state["pos_embed"].shape != model.pos_embed.shape:
            side = math.isqrt(state["pos_embed"].shape[1])
            state = state | {"pos_embed": zoom(state["pos_embed"], (side, side), model.patch_embed.grid_size)}
        for path, module in model.named_modules():
            if isinstance(module, BalancedRouter):  # by biases that begin at 0, whatever balanced it before
                state = {f"{path}.{name}": buffer for name, buffer in module.named_buffers()} | state
        other = {name for name in set(own) ^ set(state) if not name.startswith("head.")}
        other |= {name for name in set(own) & set(state) if own[name].shape != state[name].shape}
        # timm exchanges a classifier of other classes, and sums or repeats weights of other channels.
        other -= {"head.weight", "head.bias"} if model.num_classes != self.configuration["num_classes"] else set()
        other -= {f"{first}.weight"} if model.in_chans != self.sizes["in_chans"] else set()
        if other:
            raise ValueError(
                f"these options make another network than that of the weights {self.configuration['file']}: they "
                f"differ in {', '.join(sorted(other)[:3])}"
            )
        return state
