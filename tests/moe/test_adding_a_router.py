"""pytest tests/moe/test_adding_a_router.py: a router is one file and one line.

This file is the router; the line is `ROUTERS[…] = …`, which for a router of ours stands in `vismoe/moe/__init__.py`.
"""

import pytest
import torch

import vismoe
from vismoe.moe import ROUTERS, MoE, Router, Routing
from vismoe.moe.routers.fixed import even_routing


class StripesRouter(Router):
    """The s-th token of an image goes to expert s mod E: nothing is learned, and load is even."""

    groups_by_image = True

    def __init__(self, dim: int, num_experts: int, k: int = 1):
        super().__init__(dim, num_experts)
        self.k = k

    def forward(self, tokens_GSd, mask_GS=None) -> Routing:
        groups, size, _ = tokens_GSd.shape
        expert = torch.arange(size) % self.num_experts
        logits = torch.nn.functional.one_hot(expert, self.num_experts).float().expand(groups, -1, -1)
        return even_routing(expert[None, :, None].expand(groups, -1, -1), logits, mask_GS)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(ROUTERS, "stripes", StripesRouter)


def test_a_preset_is_built_with_it_trains_and_is_saved(known, tmp_path):
    """By its name in `router=`: it routes as it says, gradients reach the experts, a model folder opens again."""
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router="stripes", num_classes=3)
    layers = [layer for layer in model.modules() if isinstance(layer, MoE)]
    assert all(isinstance(layer.router, StripesRouter) for layer in layers)
    images = torch.randn(2, 3, 8, 8)
    with vismoe.record(model) as routing:
        model.forward_features(images).square().sum().backward()
    tokens = 17  # sixteen patches and the class token
    for calls in routing.layers.values():
        assert calls[0].load.tolist() == [2 * len(range(expert, tokens, 8)) for expert in range(8)]
    assert all(layer.experts.up.weight.grad.abs().sum() > 0 for layer in layers)
    vismoe.save(model, tmp_path / "model")
    assert torch.equal(vismoe.load(tmp_path / "model")(images), model.eval()(images))


def test_a_trained_network_is_upcycled_with_it(known):
    """Equal experts weigh as one: the upcycled network starts with its parent's outputs."""
    parent = vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=3).eval()
    sparse = vismoe.upcycle(parent, 4, router="stripes").eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(sparse(images), parent(images), atol=1e-5, rtol=1e-5)
