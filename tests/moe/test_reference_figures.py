"""VISMOE_REFERENCE_FIGURES=<folder> pytest tests/moe/test_reference_figures.py"""

import json

import numpy as np
import pytest
import torch
from torch import nn

import vismoe
from vismoe.moe import LocalExchange, compute_capacity, grouped, loop, padded
from vismoe.moe.plan import plan_from_choices
from vismoe.moe.routers.base import first_top_k
from vismoe.moe.routers.capacity import claim_capacity

from .oracle import plan_as_tables


class Multiplier(nn.Module):
    """Expert e multiplies by e + 1, as in the figures."""

    def __init__(self, num_experts):
        super().__init__()
        self.factor = torch.arange(1.0, num_experts + 1)[:, None]

    def forward(self, x, layout):
        return x * layout.expand(self.factor)


def read(folder, name):
    figures = dict(np.load(folder / f"{name}.npz"))
    return figures, json.loads(str(figures.pop("config_json")))


@pytest.mark.parametrize("number", range(36))
def test_dispatch_and_combine(reference_figures, number):
    """Who is kept by whom, with which weight, is the reference's exactly, ties and priority included; and so is the
    combined result of every product."""
    figures, config = read(reference_figures, "dispatch_top_experts_per_item")
    assert len(config["cases"]) == 36
    case = config["cases"][number]
    gates = torch.from_numpy(figures[case["gates"]])
    capacity, num_experts = case["capacity"], gates.shape[-1]
    expert = first_top_k(gates, case["num_selected_experts"])
    kept = claim_capacity(expert, num_experts, capacity, gates.amax(-1) if case["batch_priority"] else None)
    kept_expert = torch.where(kept, expert, num_experts)
    plan = plan_from_choices(kept_expert, gates.gather(-1, expert), num_experts, capacity * len(gates))

    ours = plan_as_tables(plan, num_experts)
    np.testing.assert_array_equal(ours[0], figures[f"case{number}/dispatch_weights"].any(-1).reshape(-1, num_experts))
    weight = figures[f"case{number}/combine_weights"].sum(-1).reshape(-1, num_experts)
    np.testing.assert_array_equal(ours[1], weight)

    inputs = torch.from_numpy(figures["inputs"])
    exchange = LocalExchange()
    for product in (loop, grouped, padded):
        rows = exchange.dispatch(plan, inputs.flatten(0, 1))
        combined = exchange.combine(plan, rows, product(Multiplier(num_experts), rows))
        expected = torch.from_numpy(figures[f"case{number}/combined"])
        torch.testing.assert_close(combined.view_as(inputs), expected, rtol=1e-6, atol=1e-6)


def test_capacity(reference_figures):
    """The capacity is the reference's in all its rows, rounding up, half to even and to multiples, and its errors."""
    rows = read(reference_figures, "compute_capacity")[0]["rows"]
    assert len(rows) == 1568
    for num_choices, num_experts, factor, mode, multiple_of, capacity in rows.tolist():
        rounding = "round" if mode else "ceil"
        multiple = 1 if multiple_of == -1 else int(multiple_of)
        arguments = int(num_choices), int(num_experts), factor, rounding, multiple
        if capacity == -1:
            with pytest.raises(ValueError, match="must be at least 1"):
                compute_capacity(*arguments)
        else:
            assert compute_capacity(*arguments) == capacity, arguments


@pytest.mark.parametrize("number", range(8))
def test_router(reference_figures, monkeypatch, number):
    """Gates, kept choices, combine weights, every loss and the gradients of the auxiliary loss are the reference's,
    with its noise fed in."""
    figures, config = read(reference_figures, "router_top_experts_per_item")
    assert len(config["cases"]) == 8
    case, k = config["cases"][number], config["cases"][number]["num_selected_experts"]
    expected = {key.removeprefix(f"case{number}/"): value for key, value in figures.items()}
    x = torch.from_numpy(figures["inputs"]).requires_grad_()
    noise = torch.from_numpy(figures["standard_normal_noise"])
    monkeypatch.setattr(torch, "randn_like", lambda logits: noise.clone())
    size, num_experts = noise.shape[1:]
    router = vismoe.TopKRouter(
        x.shape[-1],
        num_experts,
        k,
        balance="loss",
        noise_std=case["noise_std"],
        capacity_factor=case["capacity"] * num_experts / (size * k),
        capacity_rounding="round",
        batch_priority=case["batch_priority"],
        loss_weights={name: case[f"{name}_loss_weight"] for name in ("importance", "load", "gshard")},
    )
    layer = vismoe.MoE(router, vismoe.MLPExperts(x.shape[-1], 4, num_experts), group_size=size)
    layer.train(not case["deterministic"])
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(figures["kernel"]).T)
    with vismoe.record(layer) as recording:
        layer(x)
    (seen,) = recording.layers[""]
    torch.testing.assert_close(seen.gates, torch.from_numpy(expected["gates"]), rtol=1e-5, atol=1e-6)
    kept, weight = plan_as_tables(seen.plan, num_experts)
    np.testing.assert_array_equal(kept, expected["dispatch_weights"].any(-1).reshape(-1, num_experts))
    np.testing.assert_allclose(weight, expected["combine_weights"].sum(-1).reshape(-1, num_experts), atol=1e-6)

    named = {name: expected[f"{name}_loss"] for name in ("importance", "load", "gshard") if f"{name}_loss" in expected}
    assert set(named) == set(seen.losses) - {"z"}
    for name, value in named.items():
        torch.testing.assert_close(seen.losses[name], torch.from_numpy(value), rtol=1e-6, atol=1e-6)
    auxiliary = torch.from_numpy(expected["auxiliary_loss"])
    torch.testing.assert_close(seen.auxiliary_loss, auxiliary, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recording.auxiliary_loss, auxiliary.mean(), rtol=1e-6, atol=1e-6)

    recording.auxiliary_loss.backward()
    kernel_gradient = torch.from_numpy(expected["grad_kernel"])
    torch.testing.assert_close(router.weight.grad.T, kernel_gradient, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(x.grad, torch.from_numpy(expected["grad_inputs"]), rtol=1e-3, atol=1e-6)
