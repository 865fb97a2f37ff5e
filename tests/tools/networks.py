"""Small networks that the tools are tried on."""

from typing import Any

import torch
from torch import nn

import vismoe
from vismoe.moe import StackedLinear

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(3)


def sparse_network(**options: Any) -> nn.Module:
    """Four blocks, two of them sparse, at evaluation; its head is drawn, so that logits depend on the image."""
    torch.manual_seed(0)
    sizes = {"img_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4, "num_classes": 5}
    model = vismoe.create_model("vmoe_nano_patch4_32_last2_e8", **sizes | options)
    nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


def stacked_layers(model: nn.Module) -> list[StackedLinear]:
    return [module for module in model.modules() if isinstance(module, StackedLinear)]
