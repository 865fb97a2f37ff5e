"""pytest tests/moe/test_oracle_agreement.py: routing, losses and the whole layer against the slow oracle."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import vismoe
from vismoe.moe.routers import losses
from vismoe.moe.routers.base import float32_linear

from . import oracle

DIM, HIDDEN, EXPERTS, IMAGES, SIZE = 8, 12, 5, 3, 8


def tokens_with_ties():
    """Tokens whose logits, under a router that copies their first features, tie within and between tokens."""
    kinds = torch.tensor(
        [[2.0, 2, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [-1, 3, 0, 3, 3], [0, 0, 1.5, 0, 1.5], [1, 1, 1, 1, 0]]
    )
    x = torch.randn(IMAGES, SIZE, DIM)
    x[..., :EXPERTS] = kinds[torch.randint(len(kinds), (IMAGES, SIZE))]
    return x


def layer_like(options, group_size="none", ties=False, **experts):
    """A seeded layer in training and its input."""
    torch.manual_seed(1)
    router = vismoe.TopKRouter(DIM, EXPERTS, **{"balance": "none", **options})
    layer = vismoe.MoE(router, vismoe.MLPExperts(DIM, HIDDEN, EXPERTS, **experts), group_size=group_size)
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        if ties:
            router.weight.copy_(torch.eye(EXPERTS, DIM))
    return layer, tokens_with_ties() if ties else torch.randn(IMAGES, SIZE, DIM)


def a_mask():
    mask = torch.ones(IMAGES, SIZE, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 7] = mask[2, :2] = False
    return mask


def run(layer, x, mask, noise, monkeypatch):
    """The layer's output and record, with `noise` for its one draw of normal numbers; none without need of it."""
    drawn = []

    def given_noise(logits):
        drawn.append((logits.ndim, logits.dtype))
        return noise.view_as(logits).clone()

    with monkeypatch.context() as patch, vismoe.record(layer) as recording:
        patch.setattr(torch, "randn_like", given_noise)
        y = layer(x, mask)
    assert drawn == ([(3, torch.float32)] if layer.training and layer.router.noise_std else [])
    return y, recording.layers[""][0]


def oracle_says(layer, x, mask, noise, capacity):
    """The same by the oracle, group by group: outputs, routings and losses by name."""
    router = layer.router
    size = x.shape[0] * x.shape[1] if layer.group_size == "none" else layer.group_size
    live = x if mask is None else x * mask[..., None]  # Padding is routed nowhere; its gates are those of zeros.
    tokens = live.double().reshape(-1, size, DIM).numpy()
    logits = tokens @ router.weight.detach().double().numpy().T
    scale = router.noise_std / EXPERTS if router.training else 0.0
    noisy = logits + scale * noise.double().reshape(logits.shape).numpy()
    masks = [None] * len(tokens) if mask is None else mask.reshape(-1, size).numpy()
    bias = None if router.balance_bias is None else router.balance_bias.double().numpy()
    parameters = {name: value.detach().double().numpy() for name, value in layer.experts.named_parameters()}
    routed, y, values = [], [], {"importance": [], "gshard": [], "z": []} | ({"load": []} if scale else {})
    for group, live in enumerate(masks):
        routed.append(oracle.route(noisy[group], router.k, capacity, router.batch_priority, router.combine, live, bias))
        y.append(oracle.layer(tokens[group], routed[-1], parameters))
        values["importance"].append(oracle.importance_loss(logits[group], live))
        values["gshard"].append(oracle.gshard_loss(noisy[group], live))
        values["z"].append(oracle.z_loss(logits[group], live))
        if scale:
            values["load"].append(oracle.load_loss(logits[group], noisy[group], router.k, scale, live))
    return np.concatenate(y).reshape(x.shape), routed, values


def assert_agreement(layer, x, monkeypatch, mask=None, capacity=None):
    noise = torch.randn(IMAGES * SIZE * EXPERTS, generator=torch.Generator().manual_seed(2))
    y, seen = run(layer, x, mask, noise, monkeypatch)
    expected, routed, values = oracle_says(layer, x, mask, noise, capacity)
    kept, weight = oracle.plan_as_tables(seen.plan, EXPERTS)
    np.testing.assert_array_equal(kept, np.concatenate([one.kept for one in routed]))
    np.testing.assert_allclose(weight, np.concatenate([one.weight for one in routed]), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(seen.load.numpy(), sum(one.load for one in routed))
    np.testing.assert_allclose(seen.gates.detach().numpy(), np.stack([one.gates for one in routed]), rtol=1e-5)
    chosen = sum(one.load.sum() for one in routed)
    dropped = (chosen - sum(one.kept.sum() for one in routed)) / chosen
    assert seen.dropped_share.item() == pytest.approx(dropped)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert set(seen.losses) == set(values)
    for name, value in values.items():
        np.testing.assert_allclose(seen.losses[name].detach().numpy(), value, rtol=1e-5, atol=1e-6, err_msg=name)
    return dropped


CAPACITIES = [
    {"capacity_factor": "none"},
    {"capacity_factor": 0.5, "capacity_multiple_of": 1},
    {"capacity_factor": 0.5},
    {"capacity_factor": 1.05, "capacity_rounding": "round", "capacity_multiple_of": 1},
    {"capacity_factor": 1.05},
]


@pytest.mark.parametrize(
    ("k", "capacity", "batch_priority", "group_size", "masked", "ties"),
    [
        case
        for case in itertools.product((1, 2, 3), CAPACITIES, (False, True), ("none", 6), (False, True), (False, True))
        if case[1]["capacity_factor"] != "none" or not case[2]
    ],
)
def test_routing_grid(monkeypatch, k, capacity, batch_priority, group_size, masked, ties):
    """Choices, capacity claims, weights, load, losses and output are the oracle's in every combination of k, capacity,
    priority, groups that cut across images, padding, noise (none where ties are wanted)."""
    options = {"k": k, "batch_priority": batch_priority, "noise_std": 0.0 if ties else 1.5, **capacity}
    layer, x = layer_like(options, group_size, ties)
    limit, size = None, IMAGES * SIZE if group_size == "none" else group_size
    if capacity["capacity_factor"] != "none":
        rounding, multiple = capacity.get("capacity_rounding", "ceil"), capacity.get("capacity_multiple_of", 4)
        limit = oracle.capacity_of(size, k, EXPERTS, capacity["capacity_factor"], rounding, multiple)
    dropped = assert_agreement(layer, x, monkeypatch, a_mask() if masked else None, limit)
    # The grid is worth something only where capacity binds.
    assert dropped > 0 or limit is None or masked or limit * EXPERTS > size * k


@pytest.mark.parametrize(
    ("combine", "k"),
    [("gate", 1), ("gate", 2), ("gate", 3), ("renormalized", 2), ("renormalized", 3), ("unit", 1), ("unit", 3)],
)
def test_combine_weights(monkeypatch, combine, k):
    """The three ways to weigh: gates; gates by their sum over the k chosen, dropped ones included; ones."""
    layer, x = layer_like({"k": k, "combine": combine, "capacity_factor": 0.5, "capacity_multiple_of": 1})
    limit = oracle.capacity_of(IMAGES * SIZE, k, EXPERTS, 0.5, "ceil", 1)
    assert assert_agreement(layer, x, monkeypatch, a_mask(), limit) > 0


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("noise_std", [0.0, 1.0])
def test_unit_weights_are_constant(k, noise_std):
    """combine="unit": value 1 in every bit; tokens get the gradient of the sum of their experts and nothing through the
    router, whose own gradient is 0, not none, so that whoever waits for one of every parameter gets it."""
    layer, x = layer_like({"k": k, "combine": "unit", "noise_std": noise_std})
    x.requires_grad_(True)
    slope = torch.randn(x.shape)
    torch.manual_seed(2)
    ours, router = torch.autograd.grad((layer(x) * slope).sum(), (x, layer.router.weight))
    torch.manual_seed(2)
    plan = layer.router(x.flatten(0, 1)[None]).plan
    assert torch.equal(plan.weight, torch.ones_like(plan.weight))
    expert = torch.repeat_interleave(torch.arange(EXPERTS), plan.count).tolist()
    rows = x.flatten(0, 1)[plan.token]
    outputs = torch.stack([layer.experts.expert(number)(row) for row, number in zip(rows, expert, strict=True)])
    (expected,) = torch.autograd.grad((outputs * slope.flatten(0, 1)[plan.token]).sum(), x)
    torch.testing.assert_close(ours, expected)
    assert torch.equal(router, torch.zeros_like(router))


@pytest.mark.parametrize("variant", [{"gated": True}, {"norm": True}, {"bias": False}, {"gated": True, "norm": True}])
@pytest.mark.parametrize("backend", ["loop", "grouped", "padded"])
def test_experts(monkeypatch, variant, backend):
    """Every form of expert computes the oracle's formula, each expert with its own parameters."""
    layer, x = layer_like({"k": 2}, **variant)
    layer.backend = getattr(vismoe.moe, backend)
    assert_agreement(layer, x, monkeypatch, a_mask())


@pytest.mark.parametrize("training", [False, True])
def test_bias_moves_the_choice_only(monkeypatch, training):
    """The balancing bias changes who is chosen, never the weight: gates stay those of the unbiased logits, and with
    noise those of the noisy ones."""
    layer, x = layer_like({"k": 2, "balance": "bias", "noise_std": 1.0})
    layer.train(training)
    before = layer.router(x).load
    layer.router.balance_count.zero_()
    layer.router.balance_bias.copy_(torch.tensor([3.0, -3.0, 0.0, 1.0, -1.0]))
    assert_agreement(layer, x, monkeypatch)
    assert not torch.equal(before, layer.router(x).load)


def test_evaluation_has_no_noise_and_its_own_capacity(monkeypatch):
    """At evaluation no noise is drawn and eval_capacity_factor replaces capacity_factor; "same" keeps it."""
    layer, x = layer_like({"k": 2, "noise_std": 1.0, "capacity_factor": 0.5, "eval_capacity_factor": "none"})
    assert assert_agreement(layer.eval(), x, monkeypatch) == 0
    layer, x = layer_like({"k": 2, "noise_std": 1.0, "capacity_factor": 0.5})
    assert assert_agreement(layer.eval(), x, monkeypatch, None, oracle.capacity_of(IMAGES * SIZE, 2, EXPERTS, 0.5)) > 0


def test_groups_that_do_not_divide_are_images_at_evaluation(monkeypatch):
    """A group size that does not divide the tokens: at evaluation one group an image, with the image's own capacity."""
    options = {"k": 2, "capacity_factor": 0.5, "capacity_multiple_of": 1}
    layer, x = layer_like(options, group_size=7)
    with pytest.warns(UserWarning, match="group_size=7 does not divide"):
        y, seen = run(layer.eval(), x, None, torch.zeros(1), monkeypatch)
    layer.group_size = SIZE
    expected, routed, _ = oracle_says(layer, x, None, torch.zeros(x.shape[0], SIZE, EXPERTS), 2)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert seen.gates.shape == (IMAGES, SIZE, EXPERTS)
    assert sum(one.kept.sum() for one in routed) == seen.plan.count.sum() < IMAGES * SIZE * 2


@pytest.mark.parametrize(
    ("router", "is_said"),
    [
        (vismoe.TopKRouter(DIM, EXPERTS, capacity_factor=1.0), True),
        (vismoe.ExpertChoiceRouter(DIM, EXPERTS), True),
        (vismoe.SoftRouter(DIM, EXPERTS), True),
        (vismoe.TopKRouter(DIM, EXPERTS, capacity_factor=1.0, eval_capacity_factor="none"), False),
    ],
    ids=("capacity", "experts choose", "soft", "dropless"),
)
def test_other_groups_at_evaluation_are_said(router, is_said):
    """Who evaluates a network with a group size is told once that a batch is grouped otherwise, with both numbers and
    the batches that help, and only where an answer can depend on it; such a batch itself says nothing."""
    layer = vismoe.MoE(router, vismoe.MLPExperts(DIM, HIDDEN, EXPERTS), group_size=3 * SIZE).eval()
    x = torch.randn(4, SIZE, DIM)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(x[:3])
        assert not caught
        layer(x)
        layer(x[:2])
    said = [str(warning.message) for warning in caught]
    assert len(said) == is_said
    for text in said:
        assert text.startswith(
            f"group_size={3 * SIZE} does not divide the {4 * SIZE} tokens of this batch (4 images × "
        )
        assert text.endswith(f"batches of 3 images, or a multiple, make groups of {3 * SIZE}")


def test_shapes_of_input(monkeypatch):
    """(B, …, d) of any rank is the flattened call's result in its own shape; (N, d) is one image."""
    layer, x = layer_like({"k": 2, "capacity_factor": 0.5})
    expected = layer(x)
    torch.testing.assert_close(layer(x.view(IMAGES, 2, 2, 2, DIM)), expected.view(IMAGES, 2, 2, 2, DIM))
    torch.testing.assert_close(layer(x.flatten(0, 1)), expected.flatten(0, 1))
    mask = a_mask()
    torch.testing.assert_close(layer(x.flatten(0, 1), mask.view(1, -1)), layer(x, mask).flatten(0, 1))
    # Strides that no view can flatten.
    torch.testing.assert_close(layer(x.transpose(0, 1).contiguous().transpose(0, 1)), expected)


def test_losses_of_given_logits():
    """Each loss function is the oracle's on logits of any spread, group by group."""
    torch.manual_seed(3)
    logits = 3 * torch.randn(4, 10, 6)
    noisy = logits + 0.3 * torch.randn_like(logits)
    mask = torch.rand(4, 10) < 0.7
    for live, rows in ((None, [None] * 4), (mask, mask.numpy())):
        ours = {
            "importance": losses.importance_loss(logits.softmax(-1), live),
            "load": losses.load_loss(logits, noisy, 2, 0.3, live),
            "gshard": losses.gshard_loss(noisy.softmax(-1), live),
            "z": losses.z_loss(logits, live),
        }
        for group, row in enumerate(rows):
            clean, shaken = logits[group].double().numpy(), noisy[group].double().numpy()
            expected = {
                "importance": oracle.importance_loss(clean, row),
                "load": oracle.load_loss(clean, shaken, 2, 0.3, row),
                "gshard": oracle.gshard_loss(shaken, row),
                "z": oracle.z_loss(clean, row),
            }
            for name, value in expected.items():
                assert math.isclose(ours[name][group].item(), value, rel_tol=1e-5), name


def test_logits_are_float32_for_bfloat16_tokens():
    """The router computes in float32 from the values it is given, whatever their type."""
    torch.manual_seed(4)
    x, weight = torch.randn(2, 3, DIM).bfloat16(), torch.randn(EXPERTS, DIM).bfloat16()
    expected = x.double().numpy() @ weight.double().numpy().T
    ours = float32_linear(x, weight)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-6)
