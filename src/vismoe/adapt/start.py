"""The network that an adaptation starts from."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from vismoe.files import download
from vismoe.files.hub import downloading
from vismoe.vit import PRESETS
from vismoe.vit.presets import CONV_STEM_AND_MEAN
from vismoe.weights import TransformersNetwork, create_model, data_config, load_network
from vismoe.weights.folders.layout import CONFIG
from vismoe.weights.folders.load import read_config
from vismoe.weights.published import published_by

from .rules import choose_image_size

HUB, TIMM, FOLDER = "hf:", "timm:", "local-dir:"
SCRATCH = {True: "vmoe_nano_patch4_32_every2_e8", False: "vmoe_nano_patch4_32_dense"}
"""What trains from scratch, sparse and dense, where nothing trained is given: with a stem of convolutions and the mean
of its tokens, which learn more from few images."""


def check_source(source: str | None) -> None:
    """Raises FileNotFoundError for a source that is looked for on this machine and is not there."""
    if source is None or source in PRESETS or published_by(source) or source.startswith((TIMM, HUB)):
        return
    if not Path(source.removeprefix(FOLDER)).exists():
        raise FileNotFoundError(
            f"{source}: no such run or model folder; timm:NAME is a network of timm's, hf:ORG/NAME one on a hub, "
            "PRESET.TAG published weights (`vismoe models` lists those)"
        )


def open_trained(source: str) -> nn.Module:
    """A trained network with the classes that it has: a run or model folder, timm's and transformers' too
    (`local-dir:` may stand before it), `timm:NAME` with its published weights, PRESET.TAG, the reference's, or
    `hf:ORG/NAME`, a network of timm's, transformers' or vismoe's on the Hugging Face hub.

    **Raises:** ValueError, FileNotFoundError for what is none of these or cannot be downloaded.
    """
    if source.startswith(TIMM) or published_by(source):
        return create_model(source, num_classes=None, pretrained=True).eval()
    if source.startswith(HUB):
        return _of_hub(source.removeprefix(HUB))
    check_source(source)
    return load_network(source.removeprefix(FOLDER))


def _of_hub(name: str) -> nn.Module:
    config = read_config(download(name, (CONFIG,)))
    if "architecture" in config and "vismoe_format" not in config:  # timm's, whose weights timm may have to rename
        with_weights = partial(timm.create_model, f"hf-hub:{name}", pretrained=True)
        return downloading(f"hf:{name}", with_weights).eval()
    return load_network(download(name))


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
