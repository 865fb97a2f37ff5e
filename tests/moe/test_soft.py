"""pytest tests/moe/test_soft.py: soft routing, against plain loops and the reference's figures."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import vismoe
from vismoe.explain.routing import experts_of_tokens
from vismoe.vit import cost

from . import oracle

DIM, HIDDEN, EXPERTS, SLOTS, IMAGES, SIZE = 8, 12, 4, 3, 3, 7


def layer_of(**options):
    torch.manual_seed(1)
    router = vismoe.SoftRouter(DIM, EXPERTS, **{"slots_per_expert": SLOTS} | options)
    with torch.no_grad():
        router.scale.fill_(1.7)
    return vismoe.MoE(router, vismoe.MLPExperts(DIM, HIDDEN, EXPERTS)), torch.randn(IMAGES, SIZE, DIM)


def softly(layer, tokens, live, noise):
    """One image (S, d) by plain loops in float64."""
    router = layer.router
    slots = router.weight.detach().double().numpy()
    parameters = {name: value.detach().double().numpy() for name, value in layer.experts.named_parameters()}
    unit = [vector / math.sqrt(sum(vector**2) + 1e-6) for vector in tokens]
    logits = np.array([[router.scale.item() * t @ (s / math.sqrt(sum(s**2) + 1e-6)) for s in slots] for t in unit])
    logits = logits + noise
    outputs = []
    for slot in range(len(slots)):
        weight = np.zeros(len(tokens))
        if live.any():
            weight[live] = oracle.softmax(list(logits[live, slot]))
        outputs.append(oracle.mlp(weight @ tokens, parameters, slot // router.slots_per_expert))
    return np.stack([oracle.softmax(list(row)) @ np.stack(outputs) for row in logits]) * live[:, None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_layer_is_the_oracle(masked, training, monkeypatch):
    """Every token is the mixture of slots' outputs, every slot that of its image's tokens; padding is in none, and an
    image of padding alone has no NaN; noise, not divided by anything, in training only."""
    layer, x = layer_of(noise_std=0.5)
    layer.train(training)
    mask = torch.ones(IMAGES, SIZE, dtype=torch.bool)
    if masked:
        mask[0, 2:6] = mask[2, :] = False
    noise = torch.randn(IMAGES, SIZE, EXPERTS, SLOTS)
    monkeypatch.setattr(torch, "randn_like", lambda logits: noise)
    y = layer(x, mask if masked else None).detach().numpy()
    for image in range(IMAGES):
        live, tokens = mask[image].numpy(), (x[image] * mask[image][:, None]).double().numpy()
        expected = softly(layer, tokens, live, training * 0.5 * noise[image].flatten(1).double().numpy())
        np.testing.assert_allclose(y[image], expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_everything():
    """Tokens, directions, scale and experts get the gradient that finite differences give."""
    layer, x = layer_of()
    layer.double()

    def loss(tokens):
        return layer(tokens).square().sum()

    given = x.double().requires_grad_()
    loss(given).backward()
    with torch.no_grad():
        for tensor, gradient in ((given, given.grad), (layer.router.scale, layer.router.scale.grad)):
            place = (0,) * tensor.ndim
            tensor[place] += 1e-3
            above = loss(given)
            tensor[place] -= 2e-3
            below = loss(given)
            tensor[place] += 1e-3
            assert gradient[place].item() == pytest.approx(((above - below) / 2e-3).item(), rel=0.02)
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_a_scale_without_dimension_is_read():
    """Earlier versions stored the scale with shape ()."""
    layer, _ = layer_of()
    state = layer.state_dict()
    assert state["router.scale"].shape == (1,)
    layer.load_state_dict(state | {"router.scale": torch.tensor(2.5)})
    assert layer.router.scale.tolist() == [2.5]


def test_bfloat16_exchange_rounds_what_experts_see_and_say():
    """Tokens are rounded before they are mixed, outputs before they are; weights and sums are not."""
    layer, x = layer_of()
    layer.bfloat16_exchange = True
    seen = []

    class Doubling(nn.Module):
        dim, num_experts = DIM, EXPERTS

        def forward(self, rows, layout):
            seen.append(rows)
            return rows * 1.2345

    layer.experts = Doubling()
    with vismoe.record(layer) as recording:
        y = layer(x)
    plan = recording.layers[""][0].plan
    mixed = torch.einsum("gsep,gsd->egpd", plan.dispatch, x.bfloat16().float()).flatten(1, 2)
    torch.testing.assert_close(seen[0], mixed)
    answers = (seen[0] * 1.2345).bfloat16().float().view(EXPERTS, IMAGES, SLOTS, DIM)
    torch.testing.assert_close(y, torch.einsum("gsep,egpd->gsd", plan.combine, answers))
    layer.bfloat16_exchange = False
    assert not torch.equal(layer(x), y)


def test_autocast_and_bfloat16():
    """Under autocast, and in bfloat16, outputs are those of float32 within that type's rounding."""
    layer, x = layer_of()
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.05, atol=0.05)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_in_a_network(tmp_path):
    """`router="soft"` of any preset, slots given or by capacity: trains, is saved and opened again, costs what the
    dense twin's MLPs cost where there are as many slots as tokens."""
    torch.manual_seed(0)
    options = {"class_token": False, "global_pool": "avg", "num_classes": 3}
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router="soft", capacity_factor=1.0, **options)
    assert model.blocks[1].mlp.router.weight.shape == (16, 64)
    image = torch.randn(2, 3, 8, 8)
    with vismoe.record(model) as routing:
        model(image).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    vismoe.save(model, tmp_path / "model", ["a", "b", "c"])
    torch.testing.assert_close(vismoe.load(tmp_path / "model")(image), model.eval()(image))
    call = routing.layers["blocks.1.mlp"][0]
    assert experts_of_tokens(call.plan).shape == (32, 1)
    torch.testing.assert_close(call.gates.sum(-1), torch.ones(2, 16))
    dense = vismoe.create_model("vmoe_pico_patch2_8_dense", **options)
    mixing = 2 * 3 * 16 * 16 * 64
    assert cost(model, (3, 8, 8)).multiplications == cost(dense, (3, 8, 8)).multiplications + mixing
    other = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router="soft", slots_per_expert=3, **options)
    assert other.blocks[1].mlp.router.slots_per_expert == 3


@pytest.mark.parametrize("shape", [(0, SIZE, DIM), (IMAGES, 0, DIM), (0, DIM)])
def test_no_tokens(shape):
    """An empty batch, and images without tokens, give an empty output with a gradient, as of other routers."""
    layer, _ = layer_of()
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_slots_by_capacity_are_of_a_group():
    """With groups of several images as many slots as the reference draws for them: group · factor ÷ E."""
    options = {"router": "soft", "capacity_factor": 1.0, "class_token": False, "global_pool": "avg"}
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", group_size=64, **options)
    assert model.blocks[1].mlp.router.slots_per_expert == 64 // 8
    assert model.eval()(torch.randn(8, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: vismoe.create_model(
                "vmoe_pico_patch2_8_every2_e8", router="soft", slots_per_expert=2, capacity_factor=1.0
            ),
            "slots_per_expert=2, capacity_factor=1.0: both set the number of slots per expert: give one of them",
        ),
        (lambda: vismoe.SoftRouter(4, 2, 0), "slots_per_expert=0: accepted are whole numbers"),
        (lambda: vismoe.SoftRouter(4, 2, noise_std=math.inf), "noise_std=inf"),
        (
            lambda: vismoe.create_model("vmoe_pico_patch2_8_every2_e8", slots_per_expert=2),
            "slots_per_expert=2: no option of router='top-k'",
        ),
    ],
)
def test_what_it_cannot_be(make, told):
    """Options out of range, and another router's, are refused and told."""
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("number", range(5))
def test_reference_figures(reference_figures, monkeypatch, number):
    """Both matrices, what experts of no effect make of the tokens, rounded or not, and every metric are the
    reference's, with its noise fed in."""
    file = np.load(reference_figures / "router_soft.npz")
    case = json.loads(str(file["config_json"]))["cases"][number]
    expected = {
        key.removeprefix(f"case{number}/"): torch.from_numpy(file[key]) for key in file.files if f"case{number}/" in key
    }
    x, mu = torch.from_numpy(file["inputs"]), expected["mu"]
    dim, experts, slots = mu.shape
    router = vismoe.SoftRouter(dim, experts, slots, case["noise_std"]).train(not case["deterministic"])
    with torch.no_grad():
        router.weight.copy_(mu.flatten(1).T)
        router.scale.copy_(expected["scale"])
    monkeypatch.setattr(torch, "randn_like", lambda logits: expected["standard_normal_noise"])
    seen = []

    class Identity(nn.Module):
        num_experts = experts

        def forward(self, rows, layout):
            seen.append(rows)
            return rows

    Identity.dim = dim
    layer = vismoe.MoE(router, Identity())
    for kind in ("f32", "bf16"):
        layer.bfloat16_exchange = kind == "bf16"
        with vismoe.record(layer) as recording:
            y = layer(x)
        torch.testing.assert_close(y, expected[f"combined_{kind}"], rtol=0, atol=1e-6)
        rows = seen[-1].view(experts, len(x), slots, dim)
        torch.testing.assert_close(rows, expected[f"dispatched_{kind}"].view_as(rows), rtol=0, atol=1e-6)
    (call,) = recording.layers[""]
    torch.testing.assert_close(call.plan.dispatch, expected["dispatch_weights"], rtol=0, atol=1e-6)
    torch.testing.assert_close(call.plan.combine, expected["combine_weights"], rtol=0, atol=1e-6)
    names = [name for name in expected if name.endswith(("_mean", "_min", "_max"))]
    assert set(names) == set(call.metrics)
    for name in names:
        torch.testing.assert_close(call.metrics[name], expected[name], rtol=0, atol=1e-6, msg=lambda t, n=name: n + t)
