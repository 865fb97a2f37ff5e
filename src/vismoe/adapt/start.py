"""The network that an adaptation starts from."""

from typing import Any, cast

import torch
from torch import nn

from vismoe.vit.presets import CONV_STEM_AND_MEAN
from vismoe.weights import TransformersNetwork, create_model, data_config, open_trained, parse_source

from .rules import choose_image_size

SCRATCH = {True: "vmoe_nano_patch4_32_every2_e8", False: "vmoe_nano_patch4_32_dense"}
"""What trains from scratch, sparse and dense, where nothing trained is given: with a stem of convolutions and the mean
of its tokens, which learn more from few images."""


def open_start(
    source: str | None, sparse: bool, num_classes: int, image_size: int | None, device: torch.device
) -> nn.Module:
    """A network to train on: what `source` names (also a preset, with random weights), or without one a small preset,
    with a new head of `num_classes` and for images of `image_size`, by default what `choose_image_size` says."""
    if source is None or not parse_source(source).is_trained:
        size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        if source is None:
            size |= CONV_STEM_AND_MEAN
        return create_model(source or SCRATCH[sparse], num_classes=num_classes, **size)
    model: Any = open_trained(source)
    if not hasattr(model, "reset_classifier"):
        raise ValueError(f"{source} is a {type(model).__name__}: its classifier cannot be exchanged")
    model.reset_classifier(num_classes)
    set_image_size(model, image_size or choose_image_size(model, device), source)
    return cast(nn.Module, model)


def set_image_size(model: Any, image_size: int, source: str) -> None:
    """Has a trained network take images of another size; learned position embeddings are resized for it.

    **Raises:** ValueError where its patches do not tile that, or it has one size only.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if image_size < 1 or any(image_size % side for side in patch):
        raise ValueError(f"image_size={image_size}: for {source} it must be a multiple of the patch size {patch[0]}")
    own = data_config(model)["input_size"]
    if isinstance(model, TransformersNetwork) and model.resizable:
        model.set_input_size(image_size)  # its own need not be that of its images
    if (image_size, image_size) == tuple(own[1:]):
        return
    if not getattr(model, "resizable", True):
        raise ValueError(f"image_size={image_size}: {source} takes {own[1]} × {own[2]} only")
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=image_size)
    model.pretrained_cfg |= {"input_size": (own[0], image_size, image_size), "crop_pct": 1.0}
