"""What goes around a network works for an ensemble, which has several rows of logits an image.

python -m pytest tests/training/test_ensemble.py
"""

import pytest
import torch
from torch.nn import functional as F

import vismoe
from vismoe.adapt import features
from vismoe.data import open_data
from vismoe.deploy import export_onnx
from vismoe.explain import route
from vismoe.training import data_config, evaluate

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
    pixels = torch.stack([vismoe.data.evaluation_transform(config)(digits.picture(number)) for number in range(12)])
    with torch.no_grad():
        return model(pixels).unflatten(0, (12, 2))


def test_evaluation_and_prediction(digits, rows):
    """Both go by the mean of the members' probabilities, however the model's predictions are set."""
    expected = rows.softmax(-1).mean(1)
    for predictions in ("members", "mean"):
        model = ensemble(predictions=predictions)
        found = evaluate(model, digits, batch_size=5)
        torch.testing.assert_close(found.scores.softmax(-1), expected)
        assert found.figures["loss"] == pytest.approx(F.nll_loss(expected.log(), digits.labels).item(), abs=1e-5)
        told = vismoe.predict(model, [digits.picture(number) for number in range(12)], topk=10, batch_size=5)
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
    for layer in route(model, digits, data_config(model)).values():
        assert layer.expert.shape == (12, 17, 2)
        assert layer.expert[..., 0].unique().tolist() == [0, 1]
        assert layer.expert[..., 1].unique().tolist() == [2, 3]


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_training(balance, tmp_path):
    """A run trains each member on every image: the loss of its first step is the mean of the members' losses."""
    recipe = tiny(model=SPARSE, model_options={"ensemble_size": 2, "num_experts": 4, "balance": balance})
    run = vismoe.train(recipe, folder=tmp_path / "run")
    model = vismoe.load(tmp_path / "run")
    assert model.ensemble_size == 2
    assert run is not None


def test_export(tmp_path):
    """An ensemble that gives a row an image is exported, one that gives a row a member is refused."""
    model = ensemble(balance="none")
    with pytest.raises(ValueError, match='set predictions="mean"'):
        export_onnx(model, tmp_path / "model.onnx")
    model.predictions = "mean"
    done = export_onnx(model, tmp_path / "model.onnx", dynamic_batch=True)
    assert done.difference < 1e-5
