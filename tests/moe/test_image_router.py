"""pytest tests/moe/test_image_router.py: whole images to experts (Mobile V-MoE), against the slow oracle."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import vismoe

from . import oracle

DIM, HIDDEN, EXPERTS = 8, 12, 4


def layer_of(**options):
    torch.manual_seed(1)
    return vismoe.MoE(vismoe.ImageRouter(DIM, EXPERTS, **options), vismoe.MLPExperts(DIM, HIDDEN, EXPERTS))


def routed(layer, x, mask=None):
    """The oracle's routing of the images' mean tokens, one group."""
    x = x.double().numpy()
    live = np.ones(x.shape[:2], bool) if mask is None else mask.numpy()
    means = np.stack(
        [tokens[some].mean(0) if some.any() else 0 * tokens[0] for tokens, some in zip(x, live, strict=True)]
    )
    router, bias = layer.router, layer.router.balance_bias
    return oracle.route(
        means @ router.weight.detach().double().numpy().T,
        router.k,
        combine=router.combine,
        bias=None if bias is None else bias.double().numpy(),
    )


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("combine", ["gate", "unit", "renormalized"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_token_of_an_image_goes_where_its_mean_does(k, combine, masked):
    """Output, load and gates are those of token choice on the mean of an image's tokens, padding left out."""
    if (k, combine) == (1, "renormalized"):
        k = 3
    layer = layer_of(k=k, combine=combine).eval()
    layer.router.balance_bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    x = torch.randn(5, 6, DIM)
    mask = torch.rand(5, 6) < 0.7 if masked else None
    if mask is not None:
        mask[2] = False
    with vismoe.record(layer) as recording:
        y = layer(x, mask).detach().double().numpy()
    call, of_images = recording.layers[""][0], routed(layer, x, mask)
    parameters = {name: value.detach().double().numpy() for name, value in layer.experts.named_parameters()}
    load = np.zeros(EXPERTS, int)
    for image in range(5):
        for token in range(6):
            if mask is not None and not mask[image, token]:
                assert not y[image, token].any()
                continue
            load += of_images.kept[image]
            expected = sum(
                of_images.weight[image, expert] * oracle.mlp(x[image, token].double().numpy(), parameters, expert)
                for expert in of_images.kept[image].nonzero()[0]
            )
            np.testing.assert_allclose(y[image, token], expected, atol=1e-5)
    assert call.load.tolist() == load.tolist() == call.plan.count.tolist()
    for token in (0, 5):
        np.testing.assert_allclose(call.gates[:, token].detach().numpy(), of_images.gates, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_is_of_float32(masked):
    """The sum of some hundred tokens may be more than float16 holds, and bfloat16 would round it."""
    layer = layer_of().half().eval()
    x = (200 + torch.randn(2, 400, DIM)).half()
    mask = torch.ones(2, 400, dtype=torch.bool) if masked else None
    with vismoe.record(layer) as recording:
        assert layer(x, mask).isfinite().all()
    expected = x.double().mean(1) @ layer.router.weight.double().T
    torch.testing.assert_close(recording.layers[""][0].routing.image.logits[0].double(), expected, rtol=1e-5, atol=1e-3)


def test_an_image_needs_few_experts_and_not_its_batch_mates():
    """An image's tokens meet k experts in all, whoever is beside it, and its output is the same alone."""
    layer = layer_of(k=2).eval()
    x = torch.randn(4, 9, DIM)
    y = layer(x)
    for image in range(4):
        with vismoe.record(layer) as recording:
            torch.testing.assert_close(layer(x[image : image + 1])[0], y[image], rtol=0, atol=1e-6)
        assert (recording.layers[""][0].load > 0).sum() == 2


def test_guidance_by_hand():
    """The loss is λ times the mean cross-entropy of router and class group, over images that have one; its gradient
    makes the router send images to their group's expert."""
    layer = layer_of(balance="none", loss_weights={"guidance": 0.3})
    x, groups = torch.randn(6, 5, DIM), torch.tensor([0, 3, -1, 1, 1, 2])
    with vismoe.condition(layer, context=groups), vismoe.record(layer) as recording:
        layer(x)
    call = recording.layers[""][0]
    gates = routed(layer, x).gates
    by_hand = np.mean([-math.log(gates[image, group]) for image, group in enumerate(groups.tolist()) if group >= 0])
    assert call.losses["guidance"].item() == pytest.approx(by_hand, rel=1e-5)
    assert recording.auxiliary_loss.item() == pytest.approx(0.3 * by_hand, rel=1e-5)

    optimizer = torch.optim.SGD([layer.router.weight], lr=20)
    for _ in range(60):
        with vismoe.condition(layer, context=groups), vismoe.record(layer) as recording:
            layer(x)
        optimizer.zero_grad()
        recording.auxiliary_loss.backward()
        optimizer.step()
    chosen = routed(layer, x).kept.argmax(1)
    assert chosen[groups >= 0].tolist() == groups[groups >= 0].tolist()


def test_no_guidance_without_groups():
    """Without a context, or with groups of nobody, guidance adds nothing, and no NaN."""
    layer = layer_of()
    with vismoe.record(layer) as recording:
        layer(torch.randn(3, 4, DIM))
    assert "guidance" not in recording.layers[""][0].losses
    assert recording.auxiliary_loss == 0
    with vismoe.condition(layer, context=torch.full((3,), -1)), vismoe.record(layer) as recording:
        layer(torch.randn(3, 4, DIM))
    assert recording.auxiliary_loss == 0


def test_losses_are_of_the_batchs_images():
    """Importance is even over the images of a batch, not within each, whose tokens all go one way."""
    layer = layer_of(balance="loss", noise_std=1.0)
    x = torch.randn(7, 5, DIM)
    with vismoe.record(layer) as recording:
        layer(x)
    logits = x.double().mean(1).numpy() @ layer.router.weight.detach().double().numpy().T
    losses = recording.layers[""][0].losses
    assert losses["importance"].item() == pytest.approx(oracle.importance_loss(logits), rel=1e-4)
    assert losses["load"].shape == (1,)


def test_balances_images_while_training():
    """The bias evens out images: of near-equal ones every expert gets some after a while."""
    layer = layer_of()
    x = torch.randn(1, 1, DIM) + 0.3 * torch.randn(64, 3, DIM)

    def largest():
        with vismoe.record(layer.eval()) as recording, torch.no_grad():
            layer(x)
        load = recording.layers[""][0].load.float()
        return (load.max() / load.mean()).item()

    assert largest() > 2
    layer.train()
    for _ in range(100):
        layer(x)
    assert largest() < 1.7


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (torch.zeros(3), r"context \(3,\): expected a group of classes for each of 3 images, integers \(3,\)"),
        (torch.zeros(2, dtype=torch.long), r"context \(2,\): expected a group of classes for each of 3 images"),
        (torch.tensor([0, 4, 1]), "context from 0 to 4: expected .* from 0 to 3, or -1"),
        (torch.tensor([0, -2, 1]), "context from -2 to 1: expected"),
        ("cats", "context str: expected"),
    ],
)
def test_a_context_of_another_kind(context, said):
    """What is no class group of each image is refused, with what was given and what is expected."""
    layer = layer_of()
    with pytest.raises(ValueError, match=said), vismoe.condition(layer, context=context):
        layer(torch.randn(3, 4, DIM))


def test_a_network_has_it_by_name(tmp_path):
    """`router="image"` of a preset trains, is saved, opens with the same outputs, and refuses what it does not have."""
    options = {"num_classes": 5, "router": "image", "experts_per_token": 1}
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **options)
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    with vismoe.condition(model, context=labels), vismoe.record(model) as recording:
        loss = nn.functional.cross_entropy(model(x), labels) + recording.auxiliary_loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    vismoe.save(model.eval(), tmp_path / "m")
    torch.testing.assert_close(vismoe.load(tmp_path / "m")(x), model(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"capacity_factor=1\.0: no option of router='image'"):
        vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **options, capacity_factor=1.0)
