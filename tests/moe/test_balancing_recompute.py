"""Balancing under activation recompute. Run: pytest tests/moe/test_balancing_recompute.py"""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vismoe import MLPExperts, MoE, TopKRouter, record


class Network(nn.Module):
    """Two sparse blocks, each recomputed in backward or not."""

    def __init__(self, reentrant: bool | None, **options):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), MoE(TopKRouter(8, 4, **options), MLPExperts(8, 16, 4))) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + (block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant))
        return x


def train(network: Network, steps: int = 4) -> list[list[torch.Tensor]]:
    """Trains without optimiser; returns what each step gave: choices, then gradients, then the state."""
    seen = []
    for number in range(steps):
        torch.manual_seed(100 + number)
        x = torch.randn(3, 5, 8, requires_grad=True)
        network.zero_grad()
        with record(network) as routing:
            network(x).square().sum().backward()
        plans = [calls[0].plan for calls in routing.layers.values()]
        assert len(plans) == 2
        choices = [tensor for plan in plans for tensor in (plan.token, plan.count)]
        gradients = [x.grad, *(parameter.grad for parameter in network.parameters())]
        seen.append(choices + gradients + [value.clone() for value in network.state_dict().values()])
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 2, "combine": "renormalized"},
        {"k": 2, "noise_std": 1.0, "capacity_factor": 1.0, "batch_priority": True},
    ],
    ids=["k=1", "k=2", "noise and capacity"],
)
def test_non_reentrant_recompute_changes_nothing(options):
    """Under non-reentrant recompute choices, gradients, bias and counts are bit-equal to those without it."""
    plain, recomputed = Network(None, **options), Network(False, **options)
    for mine, theirs in zip(train(plain), train(recomputed), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert all(block[1].router.balance_bias.abs().max() > 0 for block in recomputed.blocks)


def test_backward_moves_no_bias():
    """A recompute, though a training forward with gradient, neither moves the bias nor takes counts."""
    network = Network(False)
    network(torch.randn(3, 5, 8))
    loss = network(torch.randn(3, 5, 8)).sum()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert any(value.abs().max() > 0 for name, value in before.items() if name.endswith("balance_bias"))
    loss.backward()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_reentrant_recompute_warns_once_and_names_the_remedy():
    """Reentrant recompute hides training from a layer: it says so once, and what to use instead."""
    network = Network(True)
    x = torch.randn(3, 5, 8, requires_grad=True)
    with pytest.warns(UserWarning, match="use_reentrant=False") as caught:
        network(x).sum().backward()
    assert len(caught) == 2  # One for each of two layers.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(x).sum().backward()


def test_non_reentrant_recompute_does_not_warn():
    """Nothing is said where balancing works."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Network(False), steps=2)
