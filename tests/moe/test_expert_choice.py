"""pytest tests/moe/test_expert_choice.py: experts that choose, against plain loops and the reference's figures."""

import json
import math

import numpy as np
import pytest
import torch

import vismoe
from vismoe.explain.routing import experts_of_tokens
from vismoe.vit import cost

from . import oracle

DIM, HIDDEN, EXPERTS, IMAGES, SIZE = 8, 12, 5, 3, 8
EXACT = {"capacity_rounding": "round", "capacity_multiple_of": 1}


def layer_of(group_size="none", **options):
    torch.manual_seed(1)
    router = vismoe.ExpertChoiceRouter(DIM, EXPERTS, **EXACT | options)
    layer = vismoe.MoE(router, vismoe.MLPExperts(DIM, HIDDEN, EXPERTS), group_size=group_size)
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return layer, torch.randn(IMAGES, SIZE, DIM)


def chosen_by_experts(logits, capacity, live):
    """One group by plain loops: each expert takes the tokens with its largest gates; padding is passed over."""
    routed = oracle.Routed(*logits.shape)
    routed.gates = np.stack([oracle.softmax(row) for row in logits])
    for expert in range(logits.shape[1]):
        scores = [gate if alive else -1.0 for gate, alive in zip(routed.gates[:, expert], live, strict=True)]
        for token in oracle.best(scores, capacity):
            if live[token]:
                routed.kept[token, expert] = True
                routed.weight[token, expert] = routed.gates[token, expert]
                routed.load[expert] += 1
    return routed


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.0, 9.0])
@pytest.mark.parametrize("group_size", ["none", 6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_layer_is_the_oracle(factor, group_size, masked, training, monkeypatch):
    """Who is taken, weights, load and output are those of plain loops, group by group: images by themselves, or groups
    across them; with padding, and with noise in training only."""
    layer, x = layer_of(group_size, capacity_factor=factor, noise_std=1.5)
    layer.train(training)
    mask = torch.ones(IMAGES, SIZE, dtype=torch.bool)
    if masked:
        mask[0, 2:7] = mask[1, 7] = mask[2, :] = False
    groups = IMAGES * SIZE // (SIZE if group_size == "none" else group_size)
    noise = torch.randn(groups, IMAGES * SIZE // groups, EXPERTS)
    monkeypatch.setattr(torch, "randn_like", lambda logits: noise)
    with vismoe.record(layer) as recording:
        y = layer(x, mask if masked else None)
    (seen,) = recording.layers[""]
    tokens = (x * mask[..., None]).double().reshape(groups, -1, DIM).numpy()
    logits = (
        tokens @ layer.router.weight.detach().double().numpy().T + training * 1.5 / EXPERTS * noise.double().numpy()
    )
    capacity = min(round(tokens.shape[1] * factor / EXPERTS), tokens.shape[1])
    alive = mask.reshape(groups, -1).numpy()
    routed = [
        chosen_by_experts(*one, live) for one, live in zip(((row, capacity) for row in logits), alive, strict=True)
    ]
    kept, weight = oracle.plan_as_tables(seen.plan, EXPERTS)
    np.testing.assert_array_equal(kept, np.concatenate([one.kept for one in routed]))
    np.testing.assert_allclose(weight, np.concatenate([one.weight for one in routed]), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(seen.load.numpy(), sum(one.load for one in routed))
    assert seen.dropped_share == 0
    parameters = {name: value.detach().double().numpy() for name, value in layer.experts.named_parameters()}
    expected = [oracle.layer(group, one, parameters) for group, one in zip(tokens, routed, strict=True)]
    np.testing.assert_allclose(y.detach().numpy(), np.concatenate(expected).reshape(x.shape), rtol=1e-5, atol=1e-5)
    takers = np.stack([one.kept.sum(1) for one in routed])
    assert seen.metrics["num_experts_per_item_max"].tolist() == takers.max(1).tolist()
    assert seen.metrics["num_experts_per_item_min"].tolist() == takers.min(1).tolist()
    np.testing.assert_allclose(
        seen.metrics["ratio_processed_items_by_at_least_2_experts"].numpy(), (takers >= 2).mean(1), rtol=1e-6
    )


def test_backends_agree_and_gradients_flow():
    """Every backend gives the same outputs and gradients where tokens have differing numbers of rows."""
    layer, x = layer_of(capacity_factor=1.6)
    found = []
    for backend in (vismoe.moe.loop, vismoe.moe.grouped, vismoe.moe.padded):
        layer.backend = backend
        layer.zero_grad()
        given = x.clone().requires_grad_()
        y = layer(given)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y.detach(), given.grad, *(parameter.grad for parameter in layer.parameters())])
    assert found[0][2].abs().max() > 0
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_an_image_does_not_depend_on_its_batch_mates():
    """By default tokens of one image compete among themselves."""
    layer, x = layer_of()
    torch.testing.assert_close(layer.eval()(x)[1:2], layer(x[1:2]))


def test_ties_go_to_the_earlier_token():
    """Of equal gates the earlier token is taken, however many are equal."""
    layer, _ = layer_of(capacity_factor=EXPERTS / 2)
    x = torch.ones(1, 64, DIM)
    with vismoe.record(layer) as recording:
        layer(x)
    for tokens in recording.layers[""][0].plan.token.view(EXPERTS, 32):
        assert tokens.tolist() == list(range(32))


def test_in_a_network(tmp_path):
    """`router="expert-choice"` of any preset: trains, is saved and opened again, costs what the dense twin costs, and
    its choices can be tabled."""
    options = {"router": "expert-choice", "capacity_multiple_of": 1, "num_classes": 3}
    torch.manual_seed(0)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", class_token=False, global_pool="avg", **options)
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(2, 3, 8, 8)
    with vismoe.record(model) as routing:
        model(image).sum().backward()
    assert model.blocks[1].mlp.router.weight.grad.abs().sum() > 0
    vismoe.save(model, tmp_path / "model", ["a", "b", "c"])
    torch.testing.assert_close(vismoe.load(tmp_path / "model")(image), model.eval()(image))
    plan = routing.layers["blocks.1.mlp"][0].plan
    table = experts_of_tokens(plan)
    kept, weight = oracle.plan_as_tables(plan, 8)
    for token, row in enumerate(table.tolist()):
        assert row == sorted(np.nonzero(kept[token])[0], key=lambda e: -weight[token, e]) + [-1] * row.count(-1)
    dense = vismoe.create_model("vmoe_pico_patch2_8_dense", class_token=False, global_pool="avg", num_classes=3)
    router = 2 * 16 * 64 * 8
    ours, theirs = (cost(network, (3, 8, 8)) for network in (model, dense))
    assert ours.macs == theirs.macs + router
    assert ours.active_parameters == theirs.parameters + 2 * 64 * 8


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: vismoe.ExpertChoiceRouter(4, 2, 0.0), "capacity_factor=0.0: accepted are positive numbers"),
        (lambda: vismoe.ExpertChoiceRouter(4, 2, 1.0, math.nan), "eval_capacity_factor=nan"),
        (lambda: vismoe.ExpertChoiceRouter(4, 2, noise_std=-1.0), "noise_std=-1.0"),
        (lambda: layer_of(capacity_factor=0.01)[0](torch.zeros(1, 4, DIM)), "gives each of 5 experts a capacity of 0"),
        (
            lambda: vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router="expert-choice", experts_per_token=2),
            "experts_per_token=2: no option of router='expert-choice'",
        ),
    ],
)
def test_what_it_cannot_be(make, told):
    """Options out of range, and another router's, are refused and told."""
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("number", range(5))
def test_reference_figures(reference_figures, monkeypatch, number):
    """Who is taken, with which weight, and every metric are the reference's, with its noise fed in."""
    file = np.load(reference_figures / "router_top_items_per_expert.npz")
    case = json.loads(str(file["config_json"]))["cases"][number]
    expected = {key.removeprefix(f"case{number}/"): file[key] for key in file.files if key.startswith(f"case{number}/")}
    x, noise = torch.from_numpy(file["inputs"]), torch.from_numpy(file["standard_normal_noise"])
    size, experts = noise.shape[1:]
    factor = case["capacity"] * experts / size
    router = vismoe.ExpertChoiceRouter(x.shape[-1], experts, factor, noise_std=case["noise_std"], **EXACT)
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(file["kernel"]).T)
    monkeypatch.setattr(torch, "randn_like", lambda logits: noise)
    layer = vismoe.MoE(router, vismoe.MLPExperts(x.shape[-1], 4, experts)).train(not case["deterministic"])
    with vismoe.record(layer) as recording:
        layer(x)
    (seen,) = recording.layers[""]
    kept, weight = oracle.plan_as_tables(seen.plan, experts)
    np.testing.assert_array_equal(kept, expected["dispatch_weights"].any(-1).reshape(-1, experts))
    np.testing.assert_allclose(weight, expected["combine_weights"].sum(-1).reshape(-1, experts), atol=1e-6)
    names = [name for name in expected if name.startswith(("max", "min", "num", "ratio"))]
    assert set(names) == set(seen.metrics)
    for name in names:
        np.testing.assert_allclose(seen.metrics[name].numpy(), expected[name], rtol=1e-6, err_msg=name)
    assert recording.auxiliary_loss == expected["auxiliary_loss"] == 0
