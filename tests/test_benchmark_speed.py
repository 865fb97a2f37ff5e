"""pytest tests/test_benchmark_speed.py: what benchmarks of speed compare does the same."""

import pytest
import timm
import torch
from router_speed import SoftProducts
from timing import forward, medians, packed_mlp, packed_network, with_limit
from torch import nn

import vismoe

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN"),
]


def test_networks_that_onednn_packs_have_the_same_outputs():
    """Both kinds of GELU, and another number of rows than the weights were packed for."""
    network = timm.create_model("vit_tiny_patch16_224", num_classes=7, depth=2).eval()
    images = torch.randn(2, 3, 224, 224)
    mlp = nn.Sequential(nn.Linear(24, 40), nn.GELU(approximate="tanh"), nn.Linear(40, 24))
    with torch.inference_mode():
        torch.testing.assert_close(packed_network(network, 197)(images), network(images))
        torch.testing.assert_close(packed_mlp(mlp, 5)(images[0, 0, :6, :24]), mlp(images[0, 0, :6, :24]))


def test_the_products_of_soft_routing_are_the_layers():
    """Without their softmaxes the layer's experts see and say what the batched products and the packed ones do."""
    layer = vismoe.MoE(vismoe.SoftRouter(16, 4, 3), vismoe.MLPExperts(16, 24, 4)).eval()
    x = torch.randn(2, 12, 16)
    with torch.inference_mode():
        weights = (x @ layer.router.weight.mT).unflatten(-1, (4, 3))
        inputs = torch.einsum("gsep,gsd->egpd", weights, x)
        outputs = torch.stack([layer.experts.expert(number)(rows) for number, rows in enumerate(inputs)])
        expected = torch.einsum("gsep,egpd->gsd", weights, outputs)
        for products in (SoftProducts(layer), SoftProducts(layer, 6)):
            torch.testing.assert_close(products(x), expected, rtol=1e-4, atol=1e-4)


def test_every_side_is_run_in_turn():
    """Two rounds warm up and are not counted."""
    seen = []
    sides = {name: (lambda module, x, name=name: seen.append((name, x)), nn.Identity()) for name in "ab"}
    found = medians(sides, lambda: torch.zeros(len(seen)), seconds=0, rounds=3)
    assert [name for name, _ in seen] == list("ababab")
    assert len({len(x) for _, x in seen}) == 6
    assert found.keys() == {"a", "b"}
    assert min(found.values()) >= 0
    forward(nn.Identity(), torch.zeros(1))


def test_a_limit_that_is_not_met_is_bold():
    assert with_limit(1.2, None) == "1.20"
    assert with_limit(1.2, 1.25) == "1.20 (≤ 1.25)"
    assert with_limit(1.3, 1.25) == "**1.30** (≤ 1.25)"
    assert with_limit(0.9, 0.95, at_least=True) == "**0.90** (≥ 0.95)"
