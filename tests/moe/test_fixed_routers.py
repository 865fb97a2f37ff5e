"""pytest tests/moe/test_fixed_routers.py: routers that learn nothing, against the slow oracle."""

import numpy as np
import pytest
import torch

import vismoe

from . import oracle

DIM, HIDDEN, EXPERTS = 8, 12, 5


def layer_of(kind, **options):
    torch.manual_seed(1)
    return vismoe.MoE(kind(DIM, EXPERTS, **options), vismoe.MLPExperts(DIM, HIDDEN, EXPERTS))


def averaged(layer, tokens, chosen):
    """The mean of the chosen experts' outputs for each token (S, d), by the oracle."""
    parameters = {name: value.detach().double().numpy() for name, value in layer.experts.named_parameters()}
    return np.stack(
        [
            np.mean([oracle.mlp(token, parameters, expert) for expert in experts], 0)
            for token, experts in zip(tokens.double().numpy(), chosen, strict=True)
        ]
    )


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_hash_chooses_the_nearest_directions(k, biased):
    """A token goes to the k directions nearest to it by distance, moved by the balancing bias, and gets the mean."""
    layer = layer_of(vismoe.HashRouter, k=k).eval()
    if biased:
        layer.router.balance_bias.copy_(torch.tensor([0.5, -0.5, 0.0, 1.0, -1.0]))
    x = torch.randn(3, 7, DIM)
    tokens, directions = x.flatten(0, 1), layer.router.weight.double()
    squared = ((tokens.double()[:, None] - directions) ** 2).sum(2)
    near = -(squared - (tokens.double() ** 2).sum(1, keepdim=True) - 1) / 2 + layer.router.balance_bias
    chosen = [oracle.best(row, k) for row in near.tolist()]
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(EXPERTS).double())
    y = layer(x).detach().flatten(0, 1).double().numpy()
    np.testing.assert_allclose(y, averaged(layer, tokens, chosen), atol=1e-6)


def test_hash_learns_nothing_but_its_experts_do():
    """Nothing of the router is trained, and no gradient reaches tokens through the choice: only through experts."""
    layer = layer_of(vismoe.HashRouter)
    x = torch.randn(2, 6, DIM, requires_grad=True)
    before = layer.router.weight.clone()
    layer(x).square().sum().backward()
    assert list(layer.router.parameters()) == []
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.experts.parameters())
    with vismoe.record(layer) as recording:
        alone = layer(x)
    gradient = torch.autograd.grad(alone.square().sum(), x)[0]
    torch.testing.assert_close(gradient, x.grad)
    assert not recording.layers[""][0].gates.requires_grad
    assert torch.equal(layer.router.weight, before)


def test_hash_balances_itself_while_training_only():
    """Of tokens that all lie near one direction every expert gets its share after some training passes."""
    layer = layer_of(vismoe.HashRouter)
    x = layer.router.weight[2] * 3 + 0.3 * torch.randn(4, 50, DIM)

    def largest():
        with vismoe.record(layer) as recording, torch.no_grad():
            layer.eval()(x)
        load = recording.layers[""][0].load.float()
        return (load.max() / load.mean()).item()

    assert largest() > 4
    unmoved = layer.router.balance_bias.clone()
    assert torch.equal(unmoved, torch.zeros(EXPERTS))
    layer.train()
    for _ in range(150):
        layer(x)
    assert largest() < 1.5


def test_hash_that_is_frozen_stays():
    """Its balancing stands still with requires_grad_(False), as a learned router's does, and goes on with True."""
    layer = layer_of(vismoe.HashRouter)
    layer.router.requires_grad_(False)
    for _ in range(2):
        layer(torch.randn(2, 9, DIM))
    assert not layer.router.balance_count.any()
    layer.router.requires_grad_(True)
    layer(torch.randn(2, 9, DIM))
    assert layer.router.balance_count.any()


@pytest.mark.parametrize("k", [1, 3])
def test_random_draws_in_training_and_takes_turns_at_evaluation(k):
    """In training every expert gets its share and each pass draws anew; at evaluation a token's place in its image
    decides, whatever its batch mates."""
    layer = layer_of(vismoe.RandomRouter, k=k)
    x = torch.randn(4, 250, DIM)
    loads = []
    for _ in range(2):
        with vismoe.record(layer) as recording:
            layer(x)
        loads.append(recording.layers[""][0].load)
    assert loads[0].sum() == 1000 * k
    assert not torch.equal(*loads)
    assert (loads[0] - 200 * k).abs().max() < 5 * (1000 * k * 0.2 * 0.8) ** 0.5
    layer.eval()
    chosen = [[(place + step) % EXPERTS for step in range(k)] for place in range(250)]
    y = layer(x).detach().double().numpy()
    np.testing.assert_allclose(y[1], averaged(layer, x[1], chosen), atol=1e-6)
    np.testing.assert_allclose(layer(x[1:2]).detach().double().numpy()[0], y[1], atol=1e-6)


@pytest.mark.parametrize("kind", [vismoe.HashRouter, vismoe.RandomRouter])
def test_padding_goes_nowhere(kind):
    """Masked tokens count as no load and get 0; the others get what they get without them."""
    layer = layer_of(kind).eval()
    x, mask = torch.randn(2, 6, DIM), torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False
    with vismoe.record(layer) as recording:
        y = layer(x, mask)
    assert recording.layers[""][0].load.sum() == 8
    assert y[:, 4:].abs().max() == 0
    torch.testing.assert_close(y[:, :4], layer(x[:, :4]))


@pytest.mark.parametrize("name", ["hash", "random"])
def test_a_network_has_them_by_name(name, tmp_path):
    """`router=` of any preset; a saved model opens with the same outputs; new weights are drawn with new directions."""
    torch.manual_seed(0)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3, router=name, experts_per_token=2).eval()
    image = torch.randn(2, 3, 8, 8)
    vismoe.save(model, tmp_path / "model", ["a", "b", "c"])
    torch.testing.assert_close(vismoe.load(tmp_path / "model")(image), model(image))
    model.init_weights()
    for block in (model.blocks[1], model.blocks[3]):
        assert block.mlp.router.k == 2
        if name == "hash":
            torch.testing.assert_close(block.mlp.router.weight.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: vismoe.HashRouter(4, 2, k=3), "k=3 experts per token, but there are only num_experts=2"),
        (lambda: vismoe.RandomRouter(4, 2, k=0), "k=0 experts per token"),
        (lambda: vismoe.HashRouter(4, 2, balance="loss"), 'use "bias" or "none"'),
        (
            lambda: vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router="hash", noise_std=1.0),
            "noise_std=1.0: no option of router='hash'",
        ),
        (
            lambda: vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router="random", balance="loss"),
            "balance='loss': no option of router='random'",
        ),
    ],
)
def test_what_they_cannot_be(make, told):
    """Options out of range, and another router's, are refused and told."""
    with pytest.raises(ValueError, match=told):
        make()
