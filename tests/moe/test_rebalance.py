"""pytest tests/moe/test_rebalance.py: experts of weights that were not trained as they are get even loads again."""

import copy

import pytest
import torch

import vismoe
from vismoe.moe import keeping_balance, rebalance

TOKENS = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(1)) + 0.5


def uneven(router=vismoe.TopKRouter, **options):
    """A layer that sends most tokens to its first expert."""
    torch.manual_seed(0)
    layer = vismoe.MoE(router(16, 4, **options), vismoe.MLPExperts(16, 8, 4)).eval()
    layer.router.weight.data[0] += 0.3
    return layer


def unevenness(layer):
    with torch.no_grad(), vismoe.record(layer) as routing:
        layer(TOKENS)
    load = routing.layers[""][0].load.float()
    return (load.max() / load.mean()).item()


@pytest.mark.parametrize("router", [vismoe.TopKRouter, vismoe.SigmoidRouter])
def test_loads_become_even(router):
    """The busiest expert ends near the mean; biases are all that moves; no gradient, no mode changes."""
    layer = uneven(router)
    before = copy.deepcopy(layer.state_dict())
    assert unevenness(layer) > 2
    rebalance(layer, [TOKENS] * 32)
    assert unevenness(layer) < 1.2
    changed = [name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["router.balance_bias"]
    assert not layer.training


def test_the_bias_is_a_mean_over_batches():
    """Batches that prefer different experts: the bias is the mean over the second half of them, not what the last one
    left; loads are nearer to even."""
    shifts = torch.randn(24, 1, 1, 16, generator=torch.Generator().manual_seed(2))
    batches = list((TOKENS + shifts * torch.tensor([1.0, -1.0] * 12)[:, None, None, None]).unbind())
    layer, last = uneven(), uneven()
    rebalance(layer, batches)
    biases = []
    for batch in batches:
        rebalance(last, [batch])
        biases.append(last.router.balance_bias.clone())
    torch.testing.assert_close(layer.router.balance_bias, torch.stack(biases[12:]).mean(0))
    assert unevenness(layer) < unevenness(last)


def test_biases_are_kept_after_the_block():
    """`keeping_balance` gives back the biases, also after an error; layers that are skipped never move."""
    layer = uneven()

    def fail_inside_the_block():
        with keeping_balance(layer):
            rebalance(layer, [TOKENS])
            assert layer.router.balance_bias.abs().max() > 0
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside_the_block()
    assert not layer.router.balance_bias.any()
    rebalance(layer, [TOKENS], skip=[""])
    assert not layer.router.balance_bias.any()


def test_what_has_no_bias_and_what_trains():
    """A network without balancing biases is left alone; one in training mode is an error that says what to do."""
    rebalance(uneven(balance="none"), [TOKENS])
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        rebalance(uneven().train(), [TOKENS])
