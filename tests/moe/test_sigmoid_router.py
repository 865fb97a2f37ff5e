"""pytest tests/moe/test_sigmoid_router.py: gates that are judged one by one (DeepSeek-V3), against the slow oracle."""

import math

import numpy as np
import pytest
import torch

import vismoe

from . import oracle

DIM, EXPERTS = 8, 6


def by_hand(logits, k, combine, bias):
    """Weights (S, E) of one group: sigmoid gates of the k largest biased logits, divided by their sum where said."""
    weights = np.zeros_like(logits)
    for token, row in enumerate(logits):
        chosen = oracle.best(row + bias, k)
        gates = [1 / (1 + math.exp(-row[expert])) for expert in chosen]
        weights[token, chosen] = np.array(gates) / (sum(gates) if combine == "renormalized" else 1)
    return weights


@pytest.mark.parametrize(("k", "combine"), [(1, "gate"), (2, "gate"), (3, "renormalized")])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_are_sigmoids_of_the_chosen(k, combine, biased):
    """Each chosen expert weighs sigmoid(logit), or its share of their sum; the bias moves the choice only."""
    torch.manual_seed(0)
    router = vismoe.SigmoidRouter(DIM, EXPERTS, k=k, combine=combine).eval()
    bias = np.array([0.8, -0.8, 0.0, 0.4, -0.4, 0.2]) * biased
    router.balance_bias.copy_(torch.tensor(bias))
    x = torch.randn(1, 20, DIM)
    routing = router(x)
    logits = x[0].double().numpy() @ router.weight.detach().double().numpy().T
    given = np.zeros((20, EXPERTS))
    expert = torch.repeat_interleave(torch.arange(EXPERTS), routing.plan.count)
    given[routing.plan.token.numpy(), expert.numpy()] = routing.plan.weight.detach().numpy()
    np.testing.assert_allclose(given, by_hand(logits, k, combine, bias), atol=1e-6)
    np.testing.assert_allclose(routing.gates[0].detach().numpy(), 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_gshard_loss_is_of_normalised_gates():
    """E² · mean over experts of (share of first choices × mean normalised gate): 1 at an even load."""
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.SigmoidRouter(DIM, EXPERTS, 2, "none"), vismoe.MLPExperts(DIM, 4, EXPERTS))
    x = torch.randn(1, 30, DIM)
    with vismoe.record(layer) as recording:
        layer(x)
    gates = 1 / (1 + np.exp(-(x[0].double().numpy() @ layer.router.weight.detach().double().numpy().T)))
    shares = gates / gates.sum(1, keepdims=True)
    first = np.eye(EXPERTS)[gates.argmax(1)].mean(0)
    expected = EXPERTS**2 * np.mean(first * shares.mean(0))
    assert recording.layers[""][0].losses["gshard"].item() == pytest.approx(expected, rel=1e-5)


def test_a_token_that_no_expert_wants():
    """Where all of a token's gates are 0 in float32 its weights and shares are 0 too, and nothing is NaN."""
    router = vismoe.SigmoidRouter(DIM, EXPERTS, 2, "none", "renormalized")
    with torch.no_grad():
        router.weight.fill_(-1)
    layer = vismoe.MoE(router, vismoe.MLPExperts(DIM, 4, EXPERTS))
    x = torch.ones(1, 2, DIM).mul_(torch.tensor([1e3, 1.0])[:, None]).requires_grad_()
    with vismoe.record(layer) as recording:
        y = layer(x)
    gshard = recording.layers[""][0].losses["gshard"]
    (y.sum() + gshard.sum()).backward()
    assert not y[0, 0].any()
    assert y[0, 1].all()
    assert gshard.item() == pytest.approx(0.5)  # of two tokens one has shares
    assert all(value.isfinite().all() for value in (x.grad, *(parameter.grad for parameter in layer.parameters())))


def test_a_network_has_it_by_name(tmp_path):
    """`router="sigmoid"` of a preset trains, is saved, and opens with the same outputs."""
    options = {"num_classes": 5, "router": "sigmoid", "experts_per_token": 2, "combine": "renormalized"}
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **options)
    x = torch.randn(4, 3, 8, 8)
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    vismoe.save(model.eval(), tmp_path / "m")
    torch.testing.assert_close(vismoe.load(tmp_path / "m")(x), model(x), rtol=0, atol=0)
