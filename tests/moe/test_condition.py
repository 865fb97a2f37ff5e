"""A mask or a context reaches the layers inside a network. Run: pytest tests/moe/test_condition.py"""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vismoe import MLPExperts, MoE, TopKRouter, condition
from vismoe.moe import Router


def tiny() -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(8, 4, balance="none"), MLPExperts(8, 16, 4))


def tokens_and_masks(number):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 8, generator=generator)
    return x, [torch.rand(2, 5, generator=generator) > 0.5 for _ in range(number)]


def test_condition_is_the_argument():
    """`condition(model, mask=)` does to layers deep inside a network what `forward(mask=)` does, and ends with it."""
    layer = tiny()
    network = nn.Sequential(nn.Identity(), nn.Sequential(layer))
    x, (mask,) = tokens_and_masks(1)
    with condition(network, mask=mask):
        assert torch.equal(network(x), layer(x, mask=mask))
        assert torch.equal(network(x) == 0, ~mask[..., None].expand_as(x))
    assert network(x).abs().min() > 0


def test_argument_goes_before_condition():
    """A mask given to the layer itself holds, whatever the block says."""
    layer = tiny()
    x, (mask, other) = tokens_and_masks(2)
    expected = layer(x, mask=other)
    with condition(layer, mask=mask):
        assert torch.equal(layer(x, mask=other), expected)


def test_innermost_holds():
    """Of nested blocks the innermost holds, as a whole; the outer holds again after it, and none after all."""
    layer = tiny()
    x, (outer, inner) = tokens_and_masks(2)
    expected = {name: layer(x, mask=mask) for name, mask in (("outer", outer), ("inner", inner), ("none", None))}
    with condition(layer, mask=outer):
        with condition(layer, mask=inner):
            assert torch.equal(layer(x), expected["inner"])
        assert torch.equal(layer(x), expected["outer"])
        with condition(layer):
            assert torch.equal(layer(x), expected["none"])
        assert torch.equal(layer(x), expected["outer"])
    assert torch.equal(layer(x), expected["none"])


def test_condition_ends_with_an_exception():
    """A block that is left by an exception leaves nothing behind."""
    layer = tiny()
    x, (mask,) = tokens_and_masks(1)
    expected = layer(x)
    with pytest.raises(KeyError), condition(layer, mask=mask):
        raise KeyError
    assert torch.equal(layer(x), expected)


def test_threads_are_apart():
    """Two threads inside blocks of their own, and one inside none, each see their own condition at the same time."""
    layer = tiny().eval()
    x, masks = tokens_and_masks(2)
    both_inside, seen = threading.Barrier(3, timeout=30), {}

    def inside(number):
        with condition(layer, mask=masks[number]):
            both_inside.wait()
            seen[number] = layer(x)
            both_inside.wait()

    threads = [threading.Thread(target=inside, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    both_inside.wait()
    seen[None] = layer(x)
    both_inside.wait()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert torch.equal(seen[number], layer(x, mask=masks[number]))
    assert torch.equal(seen[None], layer(x))


def test_recompute_inside_the_block():
    """A recompute inside the block finds the mask: gradients are those without recompute."""
    layer = tiny()
    x, (mask,) = tokens_and_masks(1)
    layer(x, mask=mask).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    with condition(layer, mask=mask):
        checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(a.grad, b) for a, b in zip(layer.parameters(), expected, strict=True))


def test_recompute_outside_the_block():
    """A recompute after the block, or inside a block that its forward was not in, raises instead of routing padding."""
    layer = tiny()
    x, (mask,) = tokens_and_masks(1)
    with condition(layer, mask=mask):
        y = checkpoint(layer, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="must enclose backward"):
        y.sum().backward()
    y = checkpoint(layer, x, use_reentrant=False)
    with condition(layer, mask=mask), pytest.raises(RuntimeError, match="must enclose backward"):
        y.sum().backward()


class Tasks(Router):
    """Sends every token to the expert that the context names."""

    def forward(self, tokens_GSd, mask_GS=None, context=0):
        from vismoe.moe.plan import plan_from_choices
        from vismoe.moe.routers.base import Routing

        expert = torch.full((*tokens_GSd.shape[:2], 1), context)
        gates = torch.zeros(*tokens_GSd.shape[:2], self.num_experts)
        plan = plan_from_choices(expert, torch.ones(expert.shape), self.num_experts)
        return Routing(plan, gates, gates, gates, plan.count, mask_GS)


def test_context_reaches_a_router_that_takes_one():
    """The context is handed to the router as it is."""
    layer = MoE(Tasks(8, 4), tiny().experts)
    x, _ = tokens_and_masks(0)
    with condition(layer, context=2):
        chosen = layer(x)
    params = {name: parameter[2] for name, parameter in layer.experts.named_parameters()}
    hidden = nn.functional.gelu(x @ params["up.weight"].T + params["up.bias"], approximate="tanh")
    torch.testing.assert_close(chosen, hidden @ params["down.weight"].T + params["down.bias"])


def test_context_for_a_router_that_takes_none():
    """A context that a router would have to ignore is an error that names the router, and leaves nothing behind."""
    network = nn.Sequential(MoE(Tasks(8, 4), tiny().experts), tiny())
    with pytest.raises(ValueError, match="TopKRouter does not accept one"), condition(network, context=1):
        pass
    assert not any(layer.conditions.held for layer in network)
