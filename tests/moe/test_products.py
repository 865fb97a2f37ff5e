"""Where rows go and how they are multiplied are two choices, and experts are modules like any others.

pytest tests/moe/test_products.py
"""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vismoe
from vismoe.moe import LocalExchange, Rows, StackedLinear, StackedNorm, grouped, loop, padded
from vismoe.vit import using_backend

DIM, HIDDEN, EXPERTS = 8, 12, 4


def layer_of(router="top-k", **options):
    """Gated experts with a norm: every kind of part that experts have."""
    torch.manual_seed(0)
    router = {"top-k": vismoe.TopKRouter, "soft": vismoe.SoftRouter}[router]
    experts = vismoe.MLPExperts(DIM, HIDDEN, EXPERTS, gated=True, norm=True)
    return vismoe.MoE(router(DIM, EXPERTS, 2), experts, **options).eval(), torch.randn(3, 7, DIM)


def row_by_row(experts, rows):
    """A product that is written here alone: every live row by its expert, taken out of the stack as an MLP."""
    answers = torch.zeros_like(rows.values)
    expert_of_row = torch.repeat_interleave(torch.arange(len(rows.count)), rows.count)
    for row, number in enumerate(expert_of_row.tolist()):
        answers[row] = experts.expert(number)(rows.values[row])
    return answers


@pytest.mark.parametrize("router", ["top-k", "soft"])
def test_a_product_of_ones_own(router):
    """It gets the experts' module, whose weights it may read as it likes, and rows that are sorted by expert; it is
    chosen by the constructor, the attribute or for a block, and serves soft plans too."""
    layer, x = layer_of(router)
    expected = layer(x)
    assert layer.product is layer.backend is grouped
    with using_backend(layer, product=row_by_row):
        torch.testing.assert_close(layer(x), expected)
    assert layer.product is grouped
    layer.product = row_by_row
    assert layer.backend is row_by_row
    torch.testing.assert_close(layer(x), expected)
    for options in ({"product": row_by_row}, {"backend": row_by_row}):
        other, _ = layer_of(router, **options)
        assert other.product is other.backend is row_by_row
        torch.testing.assert_close(other(x), expected)
    layer.backend = None
    assert layer.product is grouped


@pytest.mark.parametrize("product", [loop, grouped, padded])
def test_products_serve_soft_plans(product):
    """Every product gives the same outputs and gradients of slots, of which each expert has as many."""
    found = []
    for chosen in (grouped, product):
        layer, x = layer_of("soft", product=chosen)
        y = layer(x)
        y.square().sum().backward()
        found.append([y.detach(), *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_one_thing_has_one_value():
    """`product` and its other name `backend` are not both given."""
    with pytest.raises(ValueError, match="product and backend are two names of one argument: give one of them"):
        layer_of(product=loop, backend=loop)


@dataclasses.dataclass(frozen=True)
class RowsFromElsewhere(Rows):
    own: int = 0


@dataclasses.dataclass(frozen=True)
class OneExpertElsewhere(LocalExchange):
    """Rows of the last expert are served by somebody else, who multiplies by 3; products see the other experts only."""

    def dispatch(self, plan, tokens):
        rows = super().dispatch(plan, tokens)
        own = int(rows.count[:-1].sum())
        return RowsFromElsewhere(rows.values[:own], rows.count[:-1], rows.bound, own=own)

    def combine(self, plan, rows, answers):
        theirs = 3 * LocalExchange(self.bfloat16).dispatch(plan, self.tokens_of(plan)).values[rows.own :]
        return super().combine(plan, rows, torch.cat([answers, theirs]))

    @staticmethod
    def tokens_of(plan):
        return torch.ones(plan.num_tokens, DIM)


class Doubling(nn.Module):
    """Experts that multiply by 2, and must never see more than three of them."""

    dim, num_experts = DIM, EXPERTS

    def forward(self, rows, layout):
        factor = torch.full((EXPERTS - 1, 1), 2.0)
        return rows * layout.expand(factor)


@pytest.mark.parametrize("product", [loop, grouped, padded])
def test_an_exchange_of_ones_own(product):
    """It decides which rows and counts are here, keeps what it needs for the way back, and every product serves it
    unchanged; rounding stays its own matter."""
    layer = vismoe.MoE(vismoe.TopKRouter(DIM, EXPERTS, 1, combine="unit"), Doubling(), product=product)
    layer.exchange = OneExpertElsewhere()
    x = torch.ones(1, 9, DIM)
    for number in range(EXPERTS):
        layer.router.balance_bias.copy_(100.0 * torch.nn.functional.one_hot(torch.tensor(number), EXPERTS))
        torch.testing.assert_close(layer.eval()(x), x * (3.0 if number == EXPERTS - 1 else 2.0))
    layer.bfloat16_exchange = True
    assert layer.exchange == OneExpertElsewhere(bfloat16=True)
    assert copy.deepcopy(layer).exchange == layer.exchange


@pytest.mark.parametrize("experts", ["full", "low-rank"])
@pytest.mark.parametrize("product", [loop, grouped, padded])
def test_every_part_is_called(product, experts):
    """Hooks on the stacked layers, and on the module of experts, see each call: what wraps, observes, prunes or moves
    modules finds the experts' parts."""
    layer, x = layer_of(product=product)
    if experts == "low-rank":
        layer.experts = vismoe.LowRankExperts(layer.experts.expert(0), EXPERTS, rank=2)
    parts = {
        name: part for name, part in layer.experts.named_modules() if isinstance(part, StackedLinear | StackedNorm)
    }
    assert len(parts) == (4 if experts == "full" else 6)
    called = set()
    for name, part in ({"": layer.experts} | parts).items():
        part.register_forward_hook(lambda module, inputs, output, name=name: called.add(name))
    layer(x)
    assert called == {"", *parts}


def test_a_wrapped_part_is_used():
    """A module in a stacked layer's place is what multiplies, in the default product as in the oracle: here one whose
    first expert has a difference of its own, as adapters have."""

    class Adapted(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.difference = StackedLinear(EXPERTS, DIM, HIDDEN, bias=False)

        def forward(self, x, layout):
            return self.inner(x, layout) + self.difference(x, layout)

    layer, x = layer_of()
    before = layer(x)
    layer.experts.up = Adapted(layer.experts.up)
    after = layer(x)
    assert not torch.allclose(after, before)
    layer.product = loop
    torch.testing.assert_close(layer(x), after)
    with torch.no_grad():
        layer.experts.up.inner.weight += layer.experts.up.difference.weight
    layer.experts.up = layer.experts.up.inner
    torch.testing.assert_close(layer(x), after)


def test_torch_counts_the_products():
    """torch's own counter sees the multiply-adds of the default product, and in the forward pass whose they are; of the
    backward pass, which costs twice as much, it sees all."""
    layer, x = layer_of()
    one = 2 * (3 * 7 * 2) * DIM * HIDDEN
    with FlopCounterMode(display=False) as counter:
        y = layer(x.requires_grad_())
    for part in ("up", "gate", "down"):
        assert sum(counter.get_flop_counts()[f"MoE.experts.{part}"].values()) == one
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_flop_counts()["Global"][torch.ops.vismoe.grouped_linear_backward] == 3 * 2 * one
