"""The network that an adaptation starts from."""

from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from vismoe.training import data_config
from vismoe.vit import PRESETS
from vismoe.vit.presets import CONV_STEM_AND_MEAN
from vismoe.weights import create_model, load

from .rules import choose_image_size

HUB, TIMM, FOLDER = "hf:", "timm:", "local-dir:"
SCRATCH = {True: "vmoe_nano_patch4_32_every2_e8", False: "vmoe_nano_patch4_32_dense"}
"""What trains from scratch, sparse and dense, where nothing trained is given: with a stem of convolutions and the mean
of its tokens, which learn more from few pictures."""


def open_trained(source: str) -> nn.Module:
    """A trained network with the classes that it has: a run or model folder (`local-dir:` may stand before it),
    `timm:NAME` with its published weights, or `hf:ORG/NAME`, timm's networks on the Hugging Face hub.

    **Raises:** ValueError, FileNotFoundError for what is none of these or cannot be downloaded.
    """
    if source.startswith((TIMM, HUB)):
        try:
            if source.startswith(TIMM):
                return create_model(source, num_classes=None, pretrained=True).eval()
            return cast(nn.Module, timm.create_model(f"hf-hub:{source.removeprefix(HUB)}", pretrained=True)).eval()
        except (OSError, RuntimeError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"the weights of {source} cannot be had (is there a network?): {told}") from error
    path = Path(source.removeprefix(FOLDER))
    if not path.exists():
        raise FileNotFoundError(
            f"{source}: no such run or model folder; timm:NAME is a network of timm's, hf:ORG/NAME one on a hub"
        )
    return load(path)


def open_start(
    source: str | None, sparse: bool, num_classes: int, image_size: int | None, device: torch.device
) -> nn.Module:
    """A network to train on: what `source` names (also a preset, with random weights), or without one a small preset,
    with a new head of `num_classes` and for images of `image_size`, by default what `choose_image_size` says."""
    if source is None or source in PRESETS:
        size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        if source is None:
            size |= CONV_STEM_AND_MEAN
        return create_model(source or SCRATCH[sparse], num_classes=num_classes, **size)
    model: Any = open_trained(source)
    image_size = image_size or choose_image_size(model, device)
    if not hasattr(model, "reset_classifier"):
        raise ValueError(f"{source} is a {type(model).__name__}: its classifier cannot be exchanged")
    model.reset_classifier(num_classes)
    own = data_config(model)["input_size"]
    if (image_size, image_size) != tuple(own[1:]):
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=image_size)
        model.pretrained_cfg |= {"input_size": (own[0], image_size, image_size), "crop_pct": 1.0}
    return cast(nn.Module, model)
