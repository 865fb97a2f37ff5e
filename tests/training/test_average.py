"""pytest tests/training/test_average.py: the average of weights is the one that its recipe says."""

from dataclasses import replace
from statistics import mean

import pytest
import torch

from vismoe.data import open_data
from vismoe.inference import evaluate
from vismoe.parallel import Mesh
from vismoe.tasks import Classification
from vismoe.training import fit
from vismoe.training.loop import balance
from vismoe.training.state import begin, build
from vismoe.training.step import Trainer

from .tiny import tiny

LAST = 0.9
REBALANCE_BATCHES = balance.REBALANCE_BATCHES  # before few_batches (conftest.py) makes it less


@pytest.mark.parametrize(
    ("warmup", "decay"), [(False, lambda step: LAST), (True, lambda step: min(LAST, 1 - step ** (-2 / 3)))]
)
def test_average_of_weights(warmup, decay):
    """After every step it is decay · itself + (1 − decay) · weights; with a warm-up it begins with the first step's
    weights, and its decay has come to the recipe's after 32."""
    recipe = tiny(average_decay=LAST, average_warmup=warmup, steps=36)
    state = begin(build(recipe, open_data("digits")), recipe)
    trainer = Trainer(recipe, state, Classification(list(map(str, range(10)))), Mesh(), print)
    expected = {name: value.clone().double() for name, value in state.model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, recipe.steps + 1):
        state.step = step
        images = torch.randn(4, 1, 8, 8, generator=generator)
        trainer.step({"image": images, "label": torch.arange(4)}, log_now=False)
        for name, value in state.model.named_parameters():
            expected[name] = decay(step) * expected[name] + (1 - decay(step)) * value.detach().double()
    for name, value in state.evaluated.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_images_that_balance_it_are_prepared_once(tmp_path, monkeypatch, workers):
    """Their batches are kept in memory if there is enough, and prepared again if not; the run is bit-equal."""
    prepared = []
    plain = balance.evaluation_batches

    def counted(*arguments):
        prepared.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(balance, "evaluation_batches", counted)
    recipe = tiny(average_decay=0.9, steps=2, evaluate_every=1, workers=workers)
    kept = fit(recipe, tmp_path / "kept")
    assert len(prepared) == 1
    monkeypatch.setattr(balance, "free_memory", lambda device: 0.0)
    again = fit(recipe, tmp_path / "again")
    assert len(prepared) == 1 + 3  # two evaluations, and the model that is saved
    assert kept.metrics == again.metrics
    first, second = (run.load_model().state_dict() for run in (kept, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_average_is_balanced(tmp_path, monkeypatch):
    """The EMA that a run saves has even experts, which the average of the biases does not give it; what is evaluated is
    what is saved, and how often it is evaluated changes neither the weights nor the state."""
    monkeypatch.setattr(balance, "REBALANCE_BATCHES", REBALANCE_BATCHES)
    recipe = tiny(average_decay=0.95, steps=6, evaluate_every=6)
    run = fit(recipe, tmp_path / "run")
    often = fit(replace(recipe, evaluate_every=3), tmp_path / "often")
    for name, tensor in run.load_model().state_dict().items():
        assert torch.equal(tensor, often.load_model().state_dict()[name]), name
    data = open_data("digits")
    saved = evaluate(run.load_model(), data.val)
    assert saved.metrics["top1"] == run.summary["top1"]
    assert max(max(load) / mean(load) for load in saved.load.values()) < 1.35
