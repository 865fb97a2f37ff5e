"""[VISMOE_REFERENCE_FIGURES=<folder>] pytest tests/training/test_reference_training.py: rates and steps are optax's."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vismoe.parallel import Mesh
from vismoe.tasks import Classification
from vismoe.training import Recipe
from vismoe.training.schedule import learning_rate
from vismoe.training.state import begin
from vismoe.training.step import Trainer
from vismoe.vit.positions import zoom

SCHEDULES = {
    "warmup_linear_decay": "warmup-polynomial",
    "warmup_polynomial_decay": "warmup-polynomial",
    "warmup_cosine_decay": "warmup-cosine",
    "big_vision_rsqrt": "rsqrt",
    "constant": "constant",
}


def told(config):
    """The fields of a recipe for a schedule as the reference writes it."""
    if isinstance(config, float):
        return {"learning_rate": config, "schedule": "constant", "warmup_steps": 0}
    fields = {"learning_rate": config.get("peak_value", config.get("value")), "schedule": SCHEDULES[config["schedule"]]}
    names = {"end_value": "end_learning_rate", "power": "power", "timescale": "timescale"}
    fields |= {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    return fields | {name: config.get(name, 0) for name in ("warmup_steps", "cooldown_steps")}


class Parts(nn.Module):
    """Parameters by the reference's names, which slashes are not allowed in."""

    def __init__(self, values):
        super().__init__()
        self.num_classes = 2
        for name, value in values.items():
            part, _, kind = name.partition("/")
            if not hasattr(self, part):
                self.add_module(part, nn.Module())
            self.get_submodule(part).register_parameter(kind, nn.Parameter(value.clone()))


def steps_of(recipe, values, gradients):
    """Each parameter after each step of the trainer, whose gradients are as given."""
    model, after = Parts(values), []

    class Given(Classification):
        def forward(self, network, batch):
            return torch.zeros(2, 2)

        def loss(self, outputs, batch):
            given = gradients[trainer.state.step - 1]
            return sum((p * given[name.replace(".", "/")]).sum() for name, p in model.named_parameters())

    trainer = Trainer(recipe, begin(model, recipe), Given(["a", "b"]), Mesh(), print)
    for _ in gradients:
        trainer.state.step += 1
        trainer.step({"image": torch.zeros(2, 1), "label": torch.tensor([0, 1])}, log_now=False)
        after.append({name.replace(".", "/"): p.detach().clone() for name, p in model.named_parameters()})
    return after


@pytest.mark.parametrize("case", range(5))
def test_rates_are_the_reference_s(reference_figures, case):
    """Five schedules over 101 steps, to the float32 that the reference computes them in."""
    figures = np.load(reference_figures / "lr_schedules.npz")
    config = json.loads(str(figures["config_json"]))["cases"][case]
    recipe = Recipe(steps=config["total_steps"], **told(config))
    rates = [learning_rate(recipe, done) for done in figures["steps"].tolist()]
    np.testing.assert_allclose(rates, figures[f"case{case}/lr"], rtol=2e-6, atol=1e-6 * recipe.learning_rate)


@pytest.mark.parametrize("case", range(4))
def test_steps_are_the_reference_s(reference_figures, case):
    """Five steps of the trainer itself from given gradients: Adam with decay; with a decay by name, clipping and
    warm-up; SGD with momentum and clipping; frozen parameters. As near as its float32 goes, in
    which 1 − 0.999^t has an error of 6e-5: steps in float64 are 1.8e-6 from its own."""
    figures = dict(np.load(reference_figures / "optimizer_steps.npz"))
    config = json.loads(str(figures.pop("config_json")))["cases"][case]
    of = {
        prefix: {
            name.removeprefix(prefix): torch.from_numpy(value)
            for name, value in figures.items()
            if name.startswith(prefix)
        }
        for prefix in ["params0/"]
        + [f"grads{step}/" for step in range(5)]
        + [f"case{case}/params{step}/" for step in range(1, 6)]
    }
    decay = config.get("weight_decay", 0.0)
    pairs = decay if isinstance(decay, list) else [("", decay)]
    recipe = Recipe(
        steps=5,
        batch_size=2,
        device="cpu",
        optimizer="adamw" if config["name"] == "adam" else "momentum",
        momentum=config.get("momentum", 0.0) if config["name"] == "sgd" else 0.9,
        weight_decay=tuple((pattern.replace("/", r"\."), value) for pattern, value in pairs),
        clip_norm=config.get("gradient_clip", {}).get("global_norm", 0.0),
        frozen=config.get("frozen_pattern", "").replace("/", r"\."),
        **told(config["learning_rate"]),
    )
    after = steps_of(recipe, of["params0/"], [of[f"grads{step}/"] for step in range(5)])
    for step, found in enumerate(after, 1):
        expected = of[f"case{case}/params{step}/"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", [0, 1, 3, 4, 5])
def test_positions_are_resized_as_the_reference_does(reference_figures, case):
    """Grids that grow, and one that stays, with a class token and without."""
    figures = np.load(reference_figures / "posemb_vit_zoom.npz")
    config = json.loads(str(figures["config_json"]))["cases"][case]
    old, new = ((config[f"{which}_grid"],) * 2 for which in ("source", "target"))
    found = zoom(torch.from_numpy(figures[f"case{case}/source"]), old, new)
    torch.testing.assert_close(found, torch.from_numpy(figures[f"case{case}/output"]), rtol=0, atol=1e-6)


def test_rates_in_closed_form():
    """The peak where the warm-up ends, the end where the run does, and known points between."""
    base = {"steps": 110, "learning_rate": 0.4, "warmup_steps": 10}
    cosine = Recipe(**base, schedule="warmup-cosine", end_learning_rate=0.2)
    assert [learning_rate(cosine, done) for done in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.2, 0.4, 0.3, 0.2])
    square = Recipe(**base, schedule="warmup-polynomial", power=2.0)
    assert [learning_rate(square, done) for done in (10, 60, 110)] == pytest.approx([0.4, 0.1, 0])
    rsqrt = Recipe(**base, schedule="rsqrt", timescale=16, cooldown_steps=52)
    assert [learning_rate(rsqrt, done) for done in (10, 58, 84, 110)] == pytest.approx([0.4, 0.2, 0.1, 0])
    constant = Recipe(**base, schedule="constant", cooldown_steps=20)
    assert [learning_rate(constant, done) for done in (10, 90, 100, 110)] == pytest.approx([0.4, 0.4, 0.2, 0])


def test_rates_of_earlier_recipes_are_what_they_were():
    """Cosine and linear over the whole run, warm-up included; rsqrt by the length of the warm-up: to the bit."""
    for warmup in (0, 7):
        for done in range(warmup, 50):
            rate = {
                name: learning_rate(Recipe(steps=50, warmup_steps=warmup, schedule=name, learning_rate=3e-3), done)
                for name in ("cosine", "linear", "rsqrt", "constant")
            }
            assert rate == {
                "cosine": 3e-3 * (0.5 * (1 + math.cos(math.pi * done / 50))),
                "linear": 3e-3 * (1 - done / 50),
                "rsqrt": 3e-3 * math.sqrt(max(warmup, 1) / max(done, 1)),
                "constant": 3e-3,
            }


def test_one_step_in_closed_form():
    """Clip, then Adam, then the decay of the first pattern that is found, then the rate; no pattern, no decay.

    Adam's first step is the sign of the gradient, whatever clipping leaves of it.
    """
    values = {"a/kernel": torch.tensor([1.0, -2.0]), "a/bias": torch.tensor([3.0]), "head/kernel": torch.tensor([4.0])}
    gradient = {name: torch.full_like(value, 5.0) for name, value in values.items()}
    base = {"steps": 1, "batch_size": 2, "warmup_steps": 0, "schedule": "constant", "learning_rate": 0.1}
    recipe = Recipe(**base, weight_decay=(("head", 0.5), ("kernel", 0.2)), clip_norm=1.0)
    (after,) = steps_of(recipe, values, [gradient])
    decay = {"a/kernel": 0.2, "a/bias": 0.0, "head/kernel": 0.5}
    for name, value in values.items():
        torch.testing.assert_close(after[name], value - 0.1 * (1 + decay[name] * value))

    # SGD: a gradient of norm 10 is made one of norm 1; decay is not clipped with it.
    recipe = Recipe(**base, weight_decay=(("kernel", 0.2),), clip_norm=1.0, optimizer="momentum")
    (after,) = steps_of(recipe, values, [gradient])
    for name, value in values.items():
        torch.testing.assert_close(after[name], value - 0.1 * (0.5 + (0.2 if "kernel" in name else 0) * value))


def test_frozen_parameters_stay_and_count_in_no_norm():
    """Neither decay nor gradient moves them, and the others are clipped by their own norm."""
    values = {"a/kernel": torch.tensor([1.0]), "head/kernel": torch.tensor([4.0])}
    gradient = {"a/kernel": torch.tensor([100.0]), "head/kernel": torch.tensor([0.5])}
    recipe = Recipe(
        steps=1,
        batch_size=2,
        warmup_steps=0,
        schedule="constant",
        learning_rate=0.1,
        optimizer="momentum",
        weight_decay=(("", 0.0),),
        clip_norm=1.0,
        frozen=r"^a\.",
    )
    (after,) = steps_of(recipe, values, [gradient])
    assert torch.equal(after["a/kernel"], values["a/kernel"])
    torch.testing.assert_close(after["head/kernel"], torch.tensor([3.95]))


def test_patterns_that_find_nothing_are_refused():
    """A slip in a name is said, with names that there are, before anything is trained."""
    model = Parts({"a/kernel": torch.ones(1), "head/kernel": torch.ones(1)})
    with pytest.raises(ValueError, match=r"weight_decay='haed' matches no parameter; their names are a\.kernel"):
        begin(model, Recipe(weight_decay=(("haed", 0.1),)))
    with pytest.raises(ValueError, match="learning_rates='haed' matches no parameter"):
        begin(model, Recipe(learning_rates=(("kernel", 0.1), ("haed", 0.1))))
    with pytest.raises(ValueError, match="frozen='haed' matches no parameter"):
        begin(model, Recipe(frozen="haed"))
    with pytest.raises(ValueError, match="nothing is left to train"):
        begin(model, Recipe(frozen="kernel"))


def test_a_parameter_named_has_its_own_rate():
    """A step of it is that of a run whose rate is this one, from the warm-up on; the others' is as without it."""
    values = {"a/kernel": torch.ones(2), "head/kernel": torch.full((2,), 4.0)}
    gradients = [{name: torch.full((2,), value) for name in values} for value in (0.5, -1.0, 2.0)]

    recipe = Recipe(steps=3, batch_size=2, warmup_steps=1, schedule="linear", learning_rate=0.1, clip_norm=0.0)
    by_name = replace(recipe, learning_rates=((r"^head\.", 0.3), ("kernel", 0.1)))
    mixed, low, high = (steps_of(r, values, gradients) for r in (by_name, recipe, replace(recipe, learning_rate=0.3)))
    for together, slow, fast in zip(mixed, low, high, strict=True):
        torch.testing.assert_close(together["a/kernel"], slow["a/kernel"])
        torch.testing.assert_close(together["head/kernel"], fast["head/kernel"])
    assert not torch.equal(low[-1]["head/kernel"], high[-1]["head/kernel"])


def test_decay_by_name_goes_with_decay_of_rates_by_layer():
    """Each parameter has its block's rate, its own decay, and where its name has a rate the block's share of that."""
    from vismoe import create_model

    model = create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, in_chans=1)
    decays = ((r"^head\.", 3.0), (r"\.weight$", 0.03))
    optimizer = begin(model, Recipe(layer_decay=0.5, weight_decay=decays, learning_rates=(("norm2", 8e-3),))).optimizer
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(found) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in names.items():
        expected = 3.0 if name.startswith("head.") else 0.03 if name.endswith(".weight") else 0.0
        assert found[id(parameter)]["weight_decay"] == expected, name
    scale = {name: found[id(names[name])]["lr_scale"] for name in ("head.weight", "blocks.3.norm1.weight")}
    assert scale["head.weight"] == 1.0
    assert found[id(names["blocks.2.norm1.weight"])]["lr_scale"] == scale["blocks.3.norm1.weight"] / 2
    assert found[id(names["blocks.3.norm2.weight"])]["lr_scale"] == scale["blocks.3.norm1.weight"] * 4
