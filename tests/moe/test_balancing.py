"""When and how the loss-free bias moves. Run: pytest tests/moe/test_balancing.py"""

import pytest
import torch

from vismoe import MLPExperts, MoE, TopKRouter, record
from vismoe.moe.routers.balancing import STEPS, BalancedRouter, move_bias


def tiny(**options) -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(8, 4, **options), MLPExperts(8, 16, 4))


def load_of(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """The load of one training forward."""
    with record(layer) as routing:
        layer(x)
    return routing.layers[""][0].load


def test_rule_by_hand():
    """The move is -STEPS["log"] · log((1 + load ÷ mean) ÷ 2), less its mean; checked on figures worked out by hand."""
    moved = move_bias(torch.tensor([0.0, 1.0, -1.0, 0.5]), torch.tensor([0, 10, 5, 25]))  # mean 10
    # log(1), log(2), log(1.5) and log(3.5), whose mean is log(10.5) / 4
    logs = torch.tensor([0.0, 0.6931472, 0.4054651, 1.2527630]) - 2.3513753 / 4
    torch.testing.assert_close(moved, torch.tensor([0.0, 1.0, -1.0, 0.5]) - STEPS["log"] * logs, rtol=0, atol=1e-6)


def test_biases_do_not_drift_off():
    """Thousands of uneven steps leave the biases' mean where it was, so that float32 resolves small moves for ever."""
    bias = torch.zeros(3)
    for _ in range(2000):
        bias = move_bias(bias, torch.tensor([2, 0, 1]))
    assert bias.mean().abs() < 1e-3 < bias[1]


def test_no_counts_no_move():
    """A bias without counts stays exactly where it is."""
    bias = torch.tensor([0.1, -0.3])
    assert torch.equal(move_bias(bias, torch.zeros(2, dtype=torch.int64)), bias)


@pytest.mark.parametrize("k", [1, 2])
def test_moves_at_the_start_of_the_next_training_forward(k):
    """Counts of one training forward move the bias in the next one, before it chooses, and not sooner."""
    layer = tiny(k=k)
    router = layer.router
    first = load_of(layer, torch.randn(3, 5, 8))
    assert first.sum() == 15 * k
    assert torch.equal(router.balance_count, first)
    assert torch.equal(router.balance_bias, torch.zeros(4))

    x = torch.randn(3, 5, 8)
    second = load_of(layer, x)
    bias = move_bias(torch.zeros(4), first)
    assert bias.abs().max() > 0
    assert torch.equal(router.balance_bias, bias)
    assert torch.equal(router.balance_count, second)
    logits = x.flatten(0, 1) @ router.weight.T
    assert torch.equal(second, (logits + bias).topk(k, dim=-1).indices.flatten().bincount(minlength=4))


def test_bias_is_on_the_choice_alone():
    """The bias decides who is chosen; the combine weight of the chosen stays its softmax gate without bias."""
    layer = tiny().eval()
    x = torch.randn(2, 3, 8)
    layer.router.balance_bias.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0]))
    with record(layer) as routing:
        layer(x)
    call = routing.layers[""][0]
    gates = (x.flatten(0, 1) @ layer.router.weight.T).softmax(-1)
    assert call.load.tolist() == [0, 0, 6, 0]
    torch.testing.assert_close(call.plan.weight, gates[:, 2])
    torch.testing.assert_close(call.gates[0], gates)


def evaluating(layer, x):
    layer.eval()(x)


def under_no_grad(layer, x):
    with torch.no_grad():
        layer(x)


def under_inference_mode(layer, x):
    with torch.inference_mode():
        layer(x)


def frozen(layer, x):
    layer.router.requires_grad_(False)
    layer(x)


@pytest.mark.parametrize("forward", [evaluating, under_no_grad, under_inference_mode, frozen])
def test_neither_counts_nor_moves_when_nobody_trains(forward):
    """Evaluation, a forward without gradient and a frozen router leave bias and counts untouched, bit by bit."""
    layer = tiny()
    layer(torch.randn(3, 5, 8))  # So that there are counts that could move the bias.
    before = {name: value.clone() for name, value in layer.router.state_dict().items()}
    assert before["balance_count"].sum() == 15
    forward(layer, torch.randn(3, 5, 8))
    forward(layer, torch.randn(3, 5, 8))
    for name, value in layer.router.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_frozen_experts_do_not_freeze_balancing():
    """Only the router's own parameters decide whether it counts: with frozen experts it still balances."""
    layer = tiny()
    layer.experts.requires_grad_(False)
    for _ in range(2):
        layer(torch.randn(3, 5, 8))
    assert layer.router.balance_bias.abs().max() > 0


def test_padding_does_not_move_the_bias():
    """Only live tokens are counted."""
    layer = tiny()
    mask = torch.tensor([[True, True, False, False, False], [True, False, False, False, False]])
    layer(torch.randn(2, 5, 8), mask=mask)
    assert layer.router.balance_count.sum() == 3


def test_dropped_choices_are_counted():
    """Counts are taken before capacity drops any: the bias sees the load that was asked for."""
    layer = tiny(capacity_factor=0.5, capacity_multiple_of=1)
    with record(layer) as routing:
        layer(torch.randn(3, 5, 8))
    assert routing.layers[""][0].dropped_share > 0
    assert layer.router.balance_count.sum() == 15


@pytest.mark.parametrize("balance", ["loss", "none"])
def test_no_buffers_without_bias(balance):
    """Where nothing is balanced by a bias, none is saved."""
    assert list(tiny(balance=balance).router.state_dict()) == ["weight"]


def test_other_rules_by_hand():
    """Loads 0, 10, 5, 25: signs of the excess are -1, 0, -1, 1, less their mean; z-scores are excess ÷ 9.35414."""
    count = torch.tensor([0, 10, 5, 25])
    for rule, excess in (("sign", [-1.0, 0.0, -1.0, 1.0]), ("z-score", [-1.069045, 0.0, -0.534522, 1.603567])):
        centred = torch.tensor(excess) - sum(excess) / 4
        torch.testing.assert_close(move_bias(torch.zeros(4), count, rule), -STEPS[rule] * centred, rtol=0, atol=1e-6)
        assert not move_bias(torch.zeros(4), torch.full((4,), 7), rule).any()
        assert not move_bias(torch.zeros(4), torch.zeros(4, dtype=torch.int64), rule).any()


@pytest.mark.parametrize("rule", ["sign", "z-score"])
def test_a_layer_moves_by_its_rule(rule):
    """`balance_rule=` is what the next training forward moves the bias by."""
    layer = tiny(balance_rule=rule)
    count = load_of(layer, torch.randn(3, 5, 8))
    layer(torch.randn(3, 5, 8))
    assert torch.equal(layer.router.balance_bias, move_bias(torch.zeros(4), count, rule))
    assert layer.router.balance_bias.any()


def test_a_rule_that_is_not_known_or_moves_nothing():
    """Another rule's name, and a rule where there is no bias, are refused."""
    # Under test the annotations refuse it before we can: `__wrapped__` is what a user calls, without their check.
    with pytest.raises(ValueError, match="balance_rule='cube': accepted are 'log', 'sign', 'z-score'"):
        BalancedRouter.__init__.__wrapped__(BalancedRouter.__new__(BalancedRouter), 8, 4, "bias", "cube")
    with pytest.raises(ValueError, match="balance_rule='sign': only balance=\"bias\" has a rule, got balance='none'"):
        tiny(balance="none", balance_rule="sign")
