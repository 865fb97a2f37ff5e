"""An efficient ensemble: each member is an ordinary sparse network, and what their logits say together.

python -m pytest tests/vit/test_ensemble.py
"""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import vismoe
from vismoe.moe import MemberMoE, MemberRouter, MLPExperts, TopKRouter
from vismoe.vit import ensemble_loss, ensemble_metrics, mean_logits, member_loss

SPARSE, DENSE = "vmoe_pico_patch2_8_every2_e8", "vmoe_pico_patch2_8_dense"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ensemble(members=2, **overrides):
    """4 blocks of 64, MoE in blocks 1 and 3, 16 patches and a class token, a head with weights, experts apart."""
    options = {"num_classes": 5, "weight_init": "", "num_experts": 6, "ensemble_size": members} | overrides
    return vismoe.create_model(SPARSE, **options).eval()


def images(count=3):
    return torch.randn(count, 3, 8, 8)


def member(model, number, **overrides):
    """One member as a sparse network of its own: its experts and its router's rows cut out."""
    own = 6 // model.ensemble_size
    alone = vismoe.create_model(SPARSE, num_classes=5, num_experts=own, **overrides)
    part = slice(number * own, (number + 1) * own)
    state = {
        name: value[part] if ".experts." in name or ".router." in name else value
        for name, value in model.state_dict().items()
    }
    alone.load_state_dict(state)
    return alone.eval()


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_each_member_is_a_sparse_network(members, k, pool):
    """Row by row, an ensemble's logits are those of each member alone on each image, and their losses its losses."""
    trunk = {"global_pool": pool, "class_token": pool == "token"}
    options = {"experts_per_token": k, "balance": "loss"} | trunk
    model, x = ensemble(members, **options), images()
    with vismoe.record(model) as routing:
        logits = model(x)
    assert logits.shape == (3 * members, 5)
    for number in range(members):
        alone = member(model, number, **options)
        with vismoe.record(alone) as expected:
            torch.testing.assert_close(logits[number::members], alone(x), rtol=0, atol=1e-5)
        for layer, (call,) in routing.layers.items():
            for name, loss in expected.layers[layer][0].losses.items():
                torch.testing.assert_close(call.losses[name][:, number], loss)
            torch.testing.assert_close(call.load.view(members, -1)[number], expected.layers[layer][0].load)


def by_loops(logits, noise, members, k, capacity, first_gate_first):
    """What is kept of one group, token by token: the gate of each (token, expert), 0 where dropped or another's."""
    size, experts = logits.shape
    own = experts // members
    noisy = logits + noise / own
    gates = np.zeros((size, experts))
    for token in range(size):
        first = token % members * own
        powers = np.exp(noisy[token, first : first + own])
        gates[token, first : first + own] = powers / powers.sum()
    order = sorted(range(size), key=lambda token: -gates[token].max()) if first_gate_first else range(size)
    kept, taken = np.zeros_like(gates), np.zeros(experts)
    for choice in range(k):
        for token in order:
            expert = np.argsort(-gates[token])[choice]
            if taken[expert] < capacity:
                kept[token, expert], taken[expert] = gates[token, expert], taken[expert] + 1
    return kept


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("first_gate_first", [False, True])
def test_capacity_noise_and_priority(members, k, first_gate_first, monkeypatch):
    """Groups of all members' tokens, with noise ÷ (E/M) and a capacity of them all: against plain loops."""
    size, tokens, options = 8 * members, 12, {"noise_std": 1.0, "capacity_factor": 0.6, "capacity_multiple_of": 1}
    router = MemberRouter(8, 6, k, members=members, batch_priority=first_gate_first, balance="none", **options)
    capacity = math.ceil(size * k * 0.6 / 6)
    experts = MLPExperts(8, 5, 6)
    layer = MemberMoE(router, experts, group_size=size).train()
    with torch.no_grad():
        router.weight.copy_(torch.randn(6, 8))
    x, noise = torch.randn(2 * members, tokens, 8), torch.randn(2 * tokens * members // size, size, 6)
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noise.view(tensor.shape))
    with vismoe.record(layer) as routing:
        y = layer(x)
    # Image by image, token by token, member by member.
    rows = [
        (image * members + number, token) for image in range(2) for token in range(tokens) for number in range(members)
    ]
    logits = np.stack([(router.weight @ x[row]).detach().numpy() for row in rows])
    assert 0 < routing.layers[""][0].dropped_share < 1
    for group in range(len(noise)):
        part = slice(group * size, (group + 1) * size)
        kept = by_loops(logits[part], noise[group].numpy(), members, k, capacity, first_gate_first)
        for row, weights in zip(rows[part], kept, strict=True):
            expected = sum(float(w) * experts.expert(e)(x[row]) for e, w in enumerate(weights) if w)
            torch.testing.assert_close(y[row], torch.zeros(8) + expected, rtol=0, atol=1e-5)


def test_padding_is_of_images():
    """A mask says of each image what is padding, for all its members, which see and say the same without it."""
    layer = MemberMoE(MemberRouter(8, 4, members=2, balance="loss"), MLPExperts(8, 5, 4))
    x, mask = torch.randn(4, 6, 8), torch.tensor([[True] * 4 + [False] * 2, [True] * 4 + [False] * 2])
    with vismoe.condition(layer, mask), vismoe.record(layer) as routing:
        y = layer(x)
    with vismoe.record(layer) as expected:
        torch.testing.assert_close(y[:, :4], layer(x[:, :4]))
    assert not y[:, 4:].any()
    for name, loss in routing.layers[""][0].losses.items():
        torch.testing.assert_close(loss, expected.layers[""][0].losses[name])


def test_members_get_gradients_of_their_own():
    """A member's loss reaches its own experts and router rows, and not another's; losses have finite gradients."""
    model = ensemble(2, balance="loss", noise_std=1.0).train()
    with vismoe.record(model) as routing:
        model(images())[0::2].square().sum().backward()
    for block in (model.blocks[1], model.blocks[3]):
        for parameter in (*block.mlp.experts.parameters(), block.mlp.router.weight):
            assert parameter.grad[:3].any()
            assert not parameter.grad[3:].any()
    assert routing.layers["blocks.1.mlp"][0].losses.keys() == {"importance", "load", "gshard", "z"}
    model.zero_grad()
    with vismoe.record(model) as routing:
        model(images())
    routing.auxiliary_loss.backward()
    assert model.blocks[1].mlp.router.weight.grad[3:].any()
    assert model.blocks[1].mlp.router.weight.grad.isfinite().all()


def test_balancing_is_loss_free():
    """With the default balancing, each member's experts become evenly loaded in a loop that knows nothing of it."""
    layer = MemberMoE(MemberRouter(8, 8, members=2), MLPExperts(8, 5, 8)).train()
    x = (torch.randn(8, 40, 8) + 2 * torch.randn(8)).repeat_interleave(2, 0)
    loads = []
    for _ in range(60):
        with vismoe.record(layer) as routing:
            layer(x)
        loads.append(routing.layers[""][0].load.float())
    assert (loads[-1].view(2, 4).sum(1) == 320).all()
    assert loads[-1].max() / loads[-1].mean() < 1.5 < loads[0].max() / loads[0].mean()


def test_trunk_is_shared():
    """Up to the first sparse layer each image is computed once."""
    model, rows = ensemble(3), []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    model(images())
    assert rows == [3, 9, 9, 9]


def test_copies_and_recompute():
    """A deep copy, and a network that recomputes its blocks, repeat once, as the network itself."""
    model, x = ensemble(2), images()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    model.train().set_grad_checkpointing()
    recomputed = model(x)
    torch.testing.assert_close(recomputed, expected)
    recomputed.sum().backward()
    assert model.patch_embed.proj.weight.grad.any()


def test_mean_of_probabilities():
    """`predictions="mean"`: a row an image, whose softmax is the mean of the members' softmax."""
    model, x = ensemble(3), images()
    rows = model(x).softmax(-1).unflatten(0, (-1, 3))
    model.predictions = "mean"
    torch.testing.assert_close(model(x).softmax(-1), rows.mean(1))
    torch.testing.assert_close(model(x).exp(), rows.mean(1))
    model.predictions = "members"
    features = model.forward_head(model.forward_features(x), pre_logits=True).unflatten(0, (-1, 3)).mean(1)
    model.predictions = "mean"
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features)


@pytest.mark.parametrize("predictions", ["members", "mean"])
def test_there_and_back(predictions, tmp_path):
    """A model folder keeps members and predictions, also those set afterwards, for vismoe.load and timm alike."""
    model, x = ensemble(2, balance="loss"), images()
    model.predictions = predictions
    vismoe.save(model, tmp_path / "m")
    for again in (
        vismoe.load(tmp_path / "m"),
        timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval(),
    ):
        assert (again.ensemble_size, again.predictions) == (2, predictions)
        assert torch.equal(again(x), model(x))
    assert ensemble(2, predictions=predictions)(x).shape == model(x).shape


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (DENSE, {"ensemble_size": 2}, "ensemble_size: this model is dense and has no experts"),
        (DENSE, {"predictions": "mean"}, "predictions='mean': accepted are \"members\" and, of an ensemble"),
        (SPARSE, {"predictions": "mean"}, "predictions='mean': accepted are"),
        (SPARSE, {"ensemble_size": 2, "predictions": "median"}, "predictions='median': accepted are"),
        (SPARSE, {"ensemble_size": 3}, "ensemble_size=3, num_experts=8: the number of experts must be a multiple"),
        (SPARSE, {"ensemble_size": -1}, "ensemble_size=-1: accepted are whole numbers"),
        (
            SPARSE,
            {"ensemble_size": 4, "experts_per_token": 3},
            "k=3 .* but each of 4 members has only 2",
        ),
        (SPARSE, {"ensemble_size": 2, "group_size": 17}, "group_size=17, ensemble_size=2: .* must be a multiple"),
        (
            SPARSE,
            {"ensemble_size": 2, "router": "expert-choice"},
            "ensemble_size=2: no option of router",
        ),
    ],
)
def test_what_does_not_fit_is_said(name, overrides, message):
    """Contradictions are one ValueError that says what was given and what is accepted."""
    with pytest.raises(ValueError, match=message):
        vismoe.create_model(name, **overrides)


def test_what_an_ensemble_cannot_do_is_said():
    """What would mix up members' rows, or tear a member's experts apart, is refused."""
    model = ensemble(2)
    with pytest.raises(ValueError, match="no intermediate features of single images"):
        model.forward_intermediates(images())
    with pytest.raises(ValueError, match="the model is an ensemble"):
        vismoe.vit.densify(model, [images()])
    with pytest.raises(ValueError, match="the model is an ensemble"):
        vismoe.vit.reduce_experts(model, 4, [images()])
    with pytest.raises(ValueError, match="ensemble_size=2: upcycling cannot make an ensemble"):
        vismoe.upcycle(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2), ensemble_size=2, moe_layers=[1])
    layer = model.blocks[1].mlp
    with pytest.raises(ValueError, match=r"input of shape \(3, 4, 64\): expected \(images × 2 members"):
        layer(torch.randn(3, 4, 64))


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("members", [1, 3])
def test_losses_and_metrics(members):
    """Against plain NumPy, image by image and pair by pair."""
    rows, classes = 4 * members, 5
    logits, labels = torch.randn(rows, classes), torch.tensor([0, 3, 3, 1])
    p, given = softmax(logits.numpy()).reshape(4, members, classes), labels.numpy()
    own = np.array([[-np.log(p[b, m, given[b]]) for m in range(members)] for b in range(4)])
    together = np.array([-np.log(p[b, :, given[b]].mean()) for b in range(4)])
    pairs = [(b, i, j) for b in range(4) for i in range(members) for j in range(members) if i != j]
    differ = [p[b, i].argmax() != p[b, j].argmax() for b, i, j in pairs]
    apart = [(p[b, i] * np.log(p[b, i] / p[b, j])).sum() for b, i, j in pairs]
    expected = {
        "loss": together.mean(),
        "accuracy": (p.mean(1).argmax(-1) == given).mean(),
        "member_loss": own.mean(),
        "member_accuracy": (p.argmax(-1) == given[:, None]).mean(),
        "disagreement": np.mean(differ) if pairs else 0.0,
        "divergence": np.mean(apart) if pairs else 0.0,
    }
    found = ensemble_metrics(logits, labels, members)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-5)
    for answers in (labels, F.one_hot(labels, classes).float()):
        np.testing.assert_allclose(member_loss(logits, answers, members), own.reshape(-1), rtol=1e-5)
        np.testing.assert_allclose(ensemble_loss(logits, answers, members), together, rtol=1e-5)


def test_losses_of_several_classes():
    """Of sigmoids, summed over classes: against plain NumPy; the mean's logits have the mean's probabilities."""
    logits, labels = torch.randn(6, 5), torch.rand(3, 5).round()
    p, y = 1 / (1 + np.exp(-logits.double().numpy())), labels.numpy()
    repeated, mean = np.repeat(y, 2, 0), (p[0::2] + p[1::2]) / 2
    own = -(repeated * np.log(p) + (1 - repeated) * np.log(1 - p)).sum(-1)
    together = -(y * np.log(mean) + (1 - y) * np.log(1 - mean)).sum(-1)
    np.testing.assert_allclose(member_loss(logits, labels, 2, "sigmoid"), own, rtol=1e-5)
    np.testing.assert_allclose(ensemble_loss(logits, labels, 2, "sigmoid"), together, rtol=1e-5)
    np.testing.assert_allclose(mean_logits(logits, 2, "sigmoid").sigmoid(), mean, rtol=1e-5)
    with pytest.raises(ValueError, match="6 rows of logits for members=4"):
        mean_logits(logits, 4)


def test_far_logits_stay_finite():
    """Logarithms of probabilities that float32 cannot hold: no infinity, no NaN, in value and gradient."""
    logits = torch.tensor([[200.0, 0.0], [300.0, -300.0]], requires_grad=True)
    for kind in ("softmax", "sigmoid"):
        loss = ensemble_loss(logits, torch.tensor([1]), 2, kind).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_parts_are_public():
    """The layer's parts, whose class says what they are."""
    layer = ensemble(2).blocks[1].mlp
    assert isinstance(layer, vismoe.MoE)
    assert isinstance(layer.router, TopKRouter)
    assert [tuple(p.shape) for p in layer.router.parameters()] == [(6, 64)]
    assert isinstance(layer.shared, nn.Module | None)
