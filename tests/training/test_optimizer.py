"""pytest tests/training/test_optimizer.py: which parameters a recipe's weight decay reaches."""

import pytest
import timm
from torch import nn

import vismoe
from vismoe.training import Recipe
from vismoe.training.optimizer import make_optimizer

SMALL = {"img_size": 32, "embed_dim": 32, "depth": 4, "num_heads": 2}


class Detector(nn.Module):
    """A network around a trunk."""

    def __init__(self, trunk):
        super().__init__()
        self.backbone, self.head = trunk, nn.Conv2d(32, 5, 1)


def preset(**options):
    return timm.create_model("vmoe_tiny_patch16_224_last2_e8", num_experts=2, scale_mlp_norm=True, **SMALL, **options)


def upcycled():
    return vismoe.upcycle(timm.create_model("vit_tiny_patch16_224", **SMALL), num_experts=2)


NETWORKS = {
    "preset": preset,
    "trunk of a detector": lambda: Detector(preset(features_only=True)),
    "upcycled": upcycled,
    "upcycled, in a detector": lambda: Detector(upcycled()),
}
"""Sparse networks with stacked vectors, which timm would take for matrices."""


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("network", NETWORKS)
def test_weight_decay_reaches_matrices_alone(network, layer_decay):
    """Weights of layers, experts and routers, but no bias, no norm, no token and no position embedding: wherever the
    sparse network is."""
    model = NETWORKS[network]()
    optimizer = make_optimizer(model, Recipe(weight_decay=0.05, layer_decay=layer_decay))
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    decayed = {name for name, parameter in model.named_parameters() if groups[id(parameter)]["weight_decay"]}
    matrices = {name for name, _ in model.named_parameters() if name.endswith(".weight") and "norm" not in name}
    assert decayed == matrices
    assert any(".experts." in name for name in decayed)
