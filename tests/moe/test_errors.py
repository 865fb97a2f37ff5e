"""pytest tests/moe/test_errors.py: a wrong option or input is refused at once, in words that say what to do."""

import math
import re

import pytest
import torch

import vismoe
from vismoe.moe import Router, compute_capacity


def layer(**options):
    return vismoe.MoE(vismoe.TopKRouter(8, 4, **options), vismoe.MLPExperts(8, 6, 4))


def refused(message):
    return pytest.raises(ValueError, match="^" + re.escape(message))


ROUTER_OPTIONS = [
    ({"k": 5}, "k=5 experts per token, but there are only num_experts=4: choose a whole number 1 ≤ k ≤ num_experts"),
    ({"k": 0}, "k=0 experts per token, but there are only num_experts=4: choose a whole number 1 ≤ k ≤ num_experts"),
    ({"combine": "renormalized"}, 'combine="renormalized" with k=1 is always 1, so the router gets no gradient'),
    ({"noise_std": -0.5}, "noise_std=-0.5: accepted are numbers ≥ 0"),
    ({"noise_std": math.nan}, "noise_std=nan: accepted are numbers ≥ 0"),
    ({"capacity_factor": 0.0}, 'capacity_factor=0.0: accepted are "none" and positive numbers'),
    ({"capacity_factor": -1.0}, 'capacity_factor=-1.0: accepted are "none" and positive numbers'),
    ({"capacity_factor": math.inf}, 'capacity_factor=inf: accepted are "none" and positive numbers'),
    ({"capacity_factor": math.nan}, 'capacity_factor=nan: accepted are "none" and positive numbers'),
    ({"eval_capacity_factor": 0.0}, 'eval_capacity_factor=0.0: accepted are "none" and positive numbers'),
    ({"capacity_multiple_of": 0}, "multiple_of=0 of a capacity: accepted are whole numbers"),
    (
        {"loss_weights": {"improtance": 1.0}},
        "loss_weights={'improtance': 1.0}: accepted are weights ≥ 0 for importance",
    ),
    ({"loss_weights": {"load": math.nan}}, "loss_weights={'load': nan}: accepted are weights ≥ 0 for"),
    ({"loss_weights": {"load": -1.0}}, "loss_weights={'load': -1.0}: accepted are weights ≥ 0 for"),
    ({"balance": "loss", "loss_weights": {}}, 'balance="loss" needs a positive weight in loss_weights'),
    ({"balance": "loss", "loss_weights": {"z": 0.0}}, 'balance="loss" needs a positive weight in loss_weights'),
]


@pytest.mark.parametrize(("options", "message"), ROUTER_OPTIONS)
def test_router_options(options, message):
    """Options outside their range, or that contradict each other, are refused when the router is built."""
    with refused(message):
        vismoe.TopKRouter(8, 4, **options)


# Under test the annotations refuse these before we can: `__wrapped__` is what a user calls, without their check.
WORDS = [
    ("balance", "even", 'balance=\'even\': accepted are "bias", "loss" and "none"'),
    ("combine", "mean", 'combine=\'mean\': accepted are "gate", "renormalized" and "unit"'),
    ("capacity_factor", "all", "capacity_factor='all': accepted are \"none\" and positive numbers"),
    ("eval_capacity_factor", "all", "eval_capacity_factor='all': accepted are \"none\" and positive numbers"),
    ("capacity_factor", None, 'capacity_factor=None: accepted are "none" and positive numbers'),
    ("noise_std", None, "noise_std=None: accepted are numbers ≥ 0"),
    ("loss_weights", {"load": "1"}, "loss_weights={'load': '1'}: accepted are weights ≥ 0 for importance"),
    ("k", 2.0, "k=2.0 experts per token, but there are only num_experts=4: choose a whole number"),
]


@pytest.mark.parametrize(("name", "word", "message"), WORDS)
def test_router_words(name, word, message):
    """An unknown word is refused with the words that are accepted."""
    with refused(message):
        vismoe.TopKRouter.__init__.__wrapped__(vismoe.TopKRouter.__new__(vismoe.TopKRouter), 8, 4, **{name: word})


@pytest.mark.parametrize(
    ("dim", "num_experts", "named"), [(0, 4, "dim=0"), (8, 0, "num_experts=0"), (8, -1, "num_experts=-1")]
)
def test_router_sizes(dim, num_experts, named):
    """A router without width or experts is refused; only the wrong value is named."""
    with refused(f"{named} of a router: accepted are whole numbers ≥ 1"):
        vismoe.TopKRouter(dim, num_experts)


@pytest.mark.parametrize("sizes", [(0, 6, 4), (8, 0, 4), (8, 6, 0)])
def test_expert_sizes(sizes):
    """Experts without a size, or a dropout that is no share, are refused."""
    dim, hidden_dim, num_experts = sizes
    needed, given = "experts need positive sizes and a dropout in 0…1", f"dim={dim}, hidden_dim={hidden_dim}"
    with refused(f"{needed}, but {given}, num_experts={num_experts}, dropout=0.0"):
        vismoe.MLPExperts(*sizes)
    with refused(f"{needed}, but dim=8, hidden_dim=6, num_experts=4, dropout=1.5"):
        vismoe.MLPExperts(8, 6, 4, dropout=1.5)


def test_router_and_experts_disagree():
    """A layer whose router and experts differ in width or number is refused, with both numbers."""
    with refused("the router has dim=8, but the experts have dim=9: they must agree"):
        vismoe.MoE(vismoe.TopKRouter(8, 4), vismoe.MLPExperts(9, 6, 4))
    with refused("the router has num_experts=4, but the experts have num_experts=5: they must agree"):
        vismoe.MoE(vismoe.TopKRouter(8, 4), vismoe.MLPExperts(8, 6, 5))


@pytest.mark.parametrize("group_size", [0, -3, 1.5, "image"])
def test_group_size(group_size):
    """A group size that is no size is refused when the layer is built."""
    unbuilt, router, experts = vismoe.MoE.__new__(vismoe.MoE), vismoe.TopKRouter(8, 4), vismoe.MLPExperts(8, 6, 4)
    with refused(f'group_size={group_size!r}: accepted are "none" and whole numbers ≥ 1'):
        vismoe.MoE.__init__.__wrapped__(unbuilt, router, experts, group_size=group_size)


def test_group_size_does_not_divide():
    """In training a group size that does not divide the batch's tokens is an error that does the sum."""
    moe = vismoe.MoE(vismoe.TopKRouter(8, 4), vismoe.MLPExperts(8, 6, 4), group_size=4)
    with refused("group_size=4 does not divide the 15 tokens of this batch (3 images × 5 tokens)"):
        moe(torch.zeros(3, 5, 8))
    moe.eval()(torch.zeros(3, 5, 8))


@pytest.mark.parametrize("shape", [(8,), (2, 3, 7), (2, 8, 3)])
def test_input_of_another_width(shape):
    """Input that is no (B, …, d) is refused with its shape and the width expected."""
    with refused(f"input of shape {shape}: expected (B, …, 8), the router's dim"):
        layer()(torch.zeros(shape))


@pytest.mark.parametrize(("shape", "mask", "expected"), [((2, 3, 8), (2, 4), (2, 3)), ((2, 3, 3, 8), (2, 3), (2, 9))])
def test_mask_of_another_shape(shape, mask, expected):
    """A mask that does not say yes or no to each token of each image is refused, from `condition` too."""
    moe, mask = layer(), torch.ones(mask, dtype=torch.bool)
    message = f"mask of shape {tuple(mask.shape)} and type torch.bool: expected {expected}, images × tokens, torch.bool"
    with refused(message):
        moe(torch.zeros(shape), mask)
    with vismoe.condition(moe, mask), refused(message):
        moe(torch.zeros(shape))


def test_mask_of_another_type():
    """A mask of numbers, which could mean either, is refused."""
    forward = vismoe.MoE.forward.__wrapped__
    with refused("mask of shape (2, 3) and type torch.int64: expected (2, 3), images × tokens, torch.bool"):
        forward(layer(), torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.int64))


def test_capacity_below_one():
    """A capacity below one is an error that says how it came about, in the layer as in the function."""
    message = "capacity_factor=0.1 gives each of 4 experts a capacity of 0 for 8 choices; it must be at least 1"
    with refused(message):
        compute_capacity(8, 4, 0.1, "round", 1)
    with refused(message):
        layer(capacity_factor=0.1, capacity_rounding="round")(torch.zeros(2, 4, 8))


@pytest.mark.parametrize(
    ("rounding", "multiple_of", "named"),
    [
        ("floor", 4, "rounding='floor'"),
        ("ceil", 1.5, "multiple_of=1.5"),
        ("ceil", -4, "multiple_of=-4"),
        ("ceil", None, "multiple_of=None"),
    ],
)
def test_capacity_options(rounding, multiple_of, named):
    """An unknown way of rounding is refused, not taken for another; only the wrong option is named."""
    with refused(f"{named} of a capacity: accepted are"):
        compute_capacity.__wrapped__(8, 4, 1.0, rounding, multiple_of)


def test_router_without_forward():
    """A router that defines no forward says so by its own name."""

    class Mine(Router):
        pass

    with pytest.raises(NotImplementedError, match=re.escape("Mine must define forward(tokens, mask) -> Routing")):
        Mine(8, 4)(torch.zeros(1, 2, 8))
