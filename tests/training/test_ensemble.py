"""What goes around a network works for an ensemble, which has several rows of logits an image.

python -m pytest tests/training/test_ensemble.py
"""

import pytest
import torch
from torch.nn import functional as F

import vismoe
from vismoe.data import open_data
from vismoe.explain import route
from vismoe.features import features
from vismoe.inference import Predictor, evaluate
from vismoe.parallel import World
from vismoe.tasks import Classification
from vismoe.training.beginning import begin
from vismoe.training.step import Trainer
from vismoe.vit import member_loss
from vismoe.weights import data_config

from .tiny import tiny

SPARSE = "vmoe_pico_patch2_8_every2_e8"


def ensemble(**overrides):
    torch.manual_seed(0)
    options = {"num_classes": 10, "in_chans": 1, "weight_init": "", "ensemble_size": 2, "num_experts": 4}
    return vismoe.create_model(SPARSE, **options | overrides).eval()


@pytest.fixture(scope="module")
def digits():
    return open_data("digits").val.subset(range(12))


@pytest.fixture(scope="module")
def rows(digits):
    """The members' logits, (12, 2, 10)."""
    model = ensemble()
    config = data_config(model)
    transform = vismoe.data.evaluation_transform(config)
    pixels = torch.stack([transform(digits.sample(number))["image"] for number in range(12)])
    with torch.no_grad():
        return model(pixels).unflatten(0, (12, 2))


def test_evaluation_and_prediction(digits, rows):
    """Both go by the mean of the members' probabilities, however the model's predictions are set."""
    expected = rows.softmax(-1).mean(1)
    for predictions in ("members", "mean"):
        model = ensemble(predictions=predictions)
        found = evaluate(model, digits, batch_size=5)
        torch.testing.assert_close(found.scores.softmax(-1), expected)
        assert found.metrics["loss"] == pytest.approx(F.nll_loss(expected.log(), digits.labels).item(), abs=1e-5)
        told = vismoe.predict(model, [digits.image(number) for number in range(12)], topk=10, batch_size=5)
        assert len(told) == 12
        for prediction, probabilities in zip(told, expected, strict=True):
            values = [value for _, value in prediction.classes]
            torch.testing.assert_close(torch.tensor(values), probabilities.sort(descending=True).values)


def test_features_and_routing(digits, rows):
    """Features are the members' mean, so that with a linear head the logits are; routing has each member's choices, its
    own experts alone."""
    model = ensemble()
    head = model.head
    torch.testing.assert_close(head(features(model, digits)).detach(), rows.mean(1), rtol=1e-4, atol=1e-5)
    for layer in route(Predictor(model), digits).values():
        assert layer.expert.shape == (12, 17, 2)
        assert layer.expert[..., 0].unique().tolist() == [0, 1]
        assert layer.expert[..., 1].unique().tolist() == [2, 3]


def test_step_trains_each_member_alone():
    """A step's loss is the mean of the members' losses, so its gradient is theirs; its accuracy the mean of theirs."""
    model, images, labels = ensemble(balance="none").train(), torch.randn(6, 1, 8, 8), torch.arange(6)
    logits = model(images)
    recipe = tiny(label_smoothing=0.0, clip_norm=0.0)
    state = begin(model, recipe)
    state.step = 1
    outcome = Trainer(recipe, state, Classification(list(map(str, range(10)))), World(), print).step(
        {"image": images, "label": labels}, log_now=True
    )
    assert outcome.loss.item() == pytest.approx(member_loss(logits, labels, 2).mean().item(), abs=1e-6)
    answers = logits.argmax(1) == labels.repeat_interleave(2)
    assert outcome.score.item() == pytest.approx(answers.float().mean().item())
    assert outcome.load["blocks.1.mlp"].sum() == 6 * 2 * 17


def test_run(tmp_path):
    """A run trains an ensemble, evaluates it, and leaves a model folder that opens as one."""
    options = (("ensemble_size", 2), ("num_experts", 4))
    run = vismoe.train(tiny(model=SPARSE, model_options=options), out=tmp_path / "run")
    assert vismoe.load(run.path).ensemble_size == 2
