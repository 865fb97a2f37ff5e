"""The layer under autocast and in bfloat16. Run: pytest tests/moe/test_autocast.py"""

import pytest
import torch

from vismoe import MLPExperts, MoE, TopKRouter, record
from vismoe.moe import grouped, loop, padded


def tiny(backend=None, **options) -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(8, 4, k=2, **options), MLPExperts(8, 16, 4), backend=backend)


@pytest.mark.parametrize("backend", [None, grouped, loop, padded], ids=["default", "grouped", "loop", "padded"])
@pytest.mark.parametrize("factor", ["none", 0.5])
def test_autocast(backend, factor):
    """Under bfloat16 autocast routing is exactly that of float32; products are bfloat16, master gradients float32."""
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    layer = tiny(backend, capacity_factor=factor)
    plain = tiny(loop, capacity_factor=factor)
    with record(plain) as expected:
        y = plain(x)
    y.square().sum().backward()
    with record(layer) as routing, torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(x)
    cast.float().square().sum().backward()

    ours, theirs = routing.layers[""][0], expected.layers[""][0]
    assert ours.routing.logits.dtype == ours.gates.dtype == ours.plan.weight.dtype == torch.float32
    assert torch.equal(ours.gates, theirs.gates)
    assert torch.equal(ours.plan.token, theirs.plan.token)
    assert cast.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: a relative error of 2⁻⁸ a product, a few of them in a row.
    torch.testing.assert_close(cast.float(), y, rtol=0, atol=0.02 * y.abs().max().item())
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        difference = (ours.grad - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-6)
        assert difference < 0.05


def test_model_in_bfloat16():
    """A model cast to bfloat16 routes in float32 on its cast weights and returns bfloat16."""
    layer = tiny().bfloat16()
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    with record(layer) as routing:
        y = layer(x)
    y.float().square().sum().backward()
    expected = torch.softmax(x.float().flatten(0, 1) @ layer.router.weight.float().T, -1)[None]
    torch.testing.assert_close(routing.layers[""][0].gates, expected)
    assert y.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in layer.parameters())
