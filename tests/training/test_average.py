"""pytest tests/training/test_average.py: the average of weights is the one that its recipe says."""

import pytest
import torch

from vismoe.data import open_data
from vismoe.parallel import World
from vismoe.tasks import Classification
from vismoe.training.beginning import begin, build
from vismoe.training.step import Trainer

from .tiny import tiny

LAST = 0.9


@pytest.mark.parametrize(
    ("warmup", "decay"), [(False, lambda step: LAST), (True, lambda step: min(LAST, 1 - step ** (-2 / 3)))]
)
def test_average_of_weights(warmup, decay):
    """After every step it is decay · itself + (1 − decay) · weights; with a warm-up it begins with the first step's
    weights, and its decay has come to the recipe's after 32."""
    recipe = tiny(average_decay=LAST, average_warmup=warmup, steps=36)
    state = begin(build(recipe, open_data("digits")), recipe)
    trainer = Trainer(recipe, state, Classification(list(map(str, range(10)))), World(), print)
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
