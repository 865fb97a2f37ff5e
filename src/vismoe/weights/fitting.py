"""Fits trained weights to a network with other classes, another image size or other channels."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from vismoe.files import read_json
from vismoe.moe import BalancedRouter
from vismoe.vit import Preset, SparseVisionTransformer
from vismoe.vit.positions import zoom
from vismoe.vit.stem import ConvEmbed

from .folders.format import CONFIG, WEIGHTS
from .huggingface.network import TransformersNetwork, data_config
from .published import Published


def architecture(preset: Preset, published: Published) -> dict[str, Any]:
    """Arguments of a network with published weights that differ from the preset's."""
    arguments: dict[str, Any] = {"img_size": published.image_size, "act_layer": "gelu_tanh"}
    if not published.representation:
        arguments["representation_size"] = 0
    return arguments | ({"moe": preset.arguments["moe"] | published.moe} if "moe" in preset.arguments else {})


class Stored:
    """The configuration of a model folder of published weights.

    **Attributes:**

    - `sizes`: arguments of the network.
    - `configuration`: entries of timm's configuration.

    **Raises:** ValueError for a damaged configuration.
    """

    def __init__(self, folder: Path):
        config = read_json(folder / CONFIG)
        try:
            arguments, data_config = config["model_args"], config["pretrained_cfg"]
            self.sizes = {name: arguments[name] for name in ("img_size", "in_chans", "representation_size")}
            self.configuration = {
                "file": str(folder / WEIGHTS),
                "input_size": tuple(data_config["input_size"]),
                "num_classes": config["num_classes"],
            }
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / CONFIG} is damaged, delete it: {error!r}") from error

    def fit(self, state: dict[str, Tensor], model: SparseVisionTransformer) -> dict[str, Tensor]:
        """Changes weights to fit a network with another image size, classifier, number of channels or balancing.

        **Arguments:**

        - `state`: the stored weights.
        - `model`: the network to fit.

        **Returns:** the weights for timm, which fits classifier and channels itself.

        **Raises:** ValueError if the network differs in anything else.
        """
        expected, first_layer = model.state_dict(), str(model.pretrained_cfg["first_conv"])
        if model.pos_embed is not None and state["pos_embed"].shape != model.pos_embed.shape:
            side = math.isqrt(state["pos_embed"].shape[1])
            state = state | {"pos_embed": zoom(state["pos_embed"], (side, side), model.patch_embed.grid_size)}
        for path, module in model.named_modules():
            if isinstance(module, BalancedRouter):  # balancing starts at 0 if the weights have no biases
                state = {f"{path}.{name}": buffer for name, buffer in module.named_buffers()} | state
        differing = {name for name in set(expected) ^ set(state) if not name.startswith("head.")}
        differing |= {name for name in set(expected) & set(state) if expected[name].shape != state[name].shape}
        # timm replaces the classifier for other classes, and sums or repeats weights for other channels.
        differing -= {"head.weight", "head.bias"} if model.num_classes != self.configuration["num_classes"] else set()
        differing -= {f"{first_layer}.weight"} if model.in_chans != self.sizes["in_chans"] else set()
        if differing:
            raise ValueError(
                f"these options do not fit the weights {self.configuration['file']}, which differ in "
                f"{', '.join(sorted(differing)[:3])}: use the options of the weights, or pretrained=False"
            )
        return state


@torch.no_grad()
def take_over(model: nn.Module, trained: nn.Module, source: str) -> None:
    """Copies the weights of `trained` into `model`, as the reference does before fine-tuning. The classifier is not
    copied, position embeddings are resized, and a representation layer is copied only if both networks have one.

    **Arguments:**

    - `model`: the network to fill, changed in place.
    - `trained`: the network with the weights.
    - `source`: the name of `trained` in error messages.

    **Raises:** ValueError if the networks differ in anything else.
    """
    state, target = dict(trained.state_dict()), model.state_dict()
    classifier: str | tuple[str, ...] = cast(Any, model).pretrained_cfg["classifier"]
    fresh = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    if not any(name.startswith("representation.") for name in target):
        fresh += ("representation.",)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(fresh)}
    kept_names = {name for name in target if not name.startswith(fresh)}
    if "pos_embed" in state and "pos_embed" in target and state["pos_embed"].shape != target["pos_embed"].shape:
        grids = [cast(Any, network).patch_embed.grid_size for network in (trained, model)]
        state["pos_embed"] = zoom(state["pos_embed"], *grids)
    differing = sorted(set(state) ^ kept_names)
    differing += [name for name in kept_names & set(state) if state[name].shape != target[name].shape]
    if differing:
        raise ValueError(f"{source} has another network than the recipe: they differ in {', '.join(differing[:3])}")
    model.load_state_dict(state, strict=False)


def set_max_level(model: Any, max_level: int) -> None:
    """Sets the white level of 16-bit images, which is saved in the model folder.

    **Arguments:**

    - `model`: the network, changed in place.
    - `max_level`: the white level, 1 to 65535.

    **Raises:** ValueError for a network of transformers', whose folders cannot store it.
    """
    if isinstance(model, TransformersNetwork):
        raise ValueError(
            f"max_level={max_level}: folders of transformers' networks cannot store it: convert the images to 8 bits"
        )
    model.pretrained_cfg |= {"max_level": max_level}


def set_image_size(model: Any, image_size: int | tuple[int, int], source: str) -> None:
    """Sets the image size of a trained network; learned position embeddings are resized.

    **Arguments:**

    - `model`: the network, changed in place.
    - `image_size`: height and width in pixels: one number for both, or (height, width).
    - `source`: the name of the network in error messages.

    **Raises:** ValueError if the network has a fixed size, or accepts only square images, or the size is not a multiple
    of the patch size (with a convolutional stem it need not be).
    """
    patch_embed = getattr(model, "patch_embed", None)
    patch = getattr(patch_embed, "patch_size", (1, 1))
    size = to_2tuple(image_size)
    fits = isinstance(patch_embed, ConvEmbed) or not any(
        length % side for length, side in zip(size, patch, strict=True)
    )
    if min(size) < 1 or not fits:
        raise ValueError(f"image_size={image_size}: for {source} it must be a multiple of the patch size {patch[0]}")
    input_size = data_config(model)["input_size"]
    if isinstance(model, TransformersNetwork):
        if size[0] != size[1]:
            raise ValueError(f"image_size={image_size}: {source}, of transformers', accepts only square images")
        if model.resizable:
            model.set_input_size(size[0])  # the network's own size may differ from that of its preprocessing
    if size == tuple(input_size[1:]):
        return
    if not getattr(model, "resizable", True):
        raise ValueError(f"image_size={image_size}: {source} accepts only {input_size[1]} × {input_size[2]}")
    if hasattr(model, "set_input_size") and not isinstance(model, TransformersNetwork):
        model.set_input_size(img_size=size)
    model.pretrained_cfg |= {"input_size": (input_size[0], *size), "crop_pct": 1.0}
