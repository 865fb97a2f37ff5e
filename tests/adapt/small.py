"""A small network to start from, and options for a short training."""

import timm
import torch
from torch import nn

from vismoe.adapt import Options


def small_vit(image_size: int = 16, depth: int = 4) -> nn.Module:
    """A dense ViT with a class token and patches of 8 × 8 pixels; its weights, which know nothing, count as trained."""
    torch.manual_seed(0)
    shape = {"img_size": image_size, "patch_size": 8, "embed_dim": 32, "depth": depth, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=7, **shape)


def options(data: object, source: object = None, **changes: object) -> Options:
    """Options for two epochs on a folder, from a network's folder."""
    return Options(**{"data": str(data), "source": None if source is None else str(source), "epochs": 2} | changes)
