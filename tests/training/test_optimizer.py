"""pytest tests/training/test_optimizer.py: which parameters a recipe's weight decay reaches."""

import pytest
import timm
import torch
from torch import nn

import vismoe
from vismoe.training import Recipe
from vismoe.training.optimizer import load_named_state, make_optimizer, named_state

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


def test_the_state_of_a_scale_without_dimension_goes_on():
    """Soft routing's scale had shape () in earlier checkpoints: its state has the shape that the optimiser expects."""
    network = vismoe.SoftRouter(4, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(2):
        (network.weight.sum() + network.scale.sum()).backward()
        optimizer.step()
    expected = {name: value.clone() for name, value in named_state(network, optimizer).items() if name != "groups"}
    old = {name: value.squeeze() if name.startswith("scale.") else value for name, value in expected.items()}
    assert old["scale.exp_avg"].ndim == 0
    load_named_state(network, optimizer, old | {"groups": []})
    found = named_state(network, optimizer)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value)
    optimizer.step()
