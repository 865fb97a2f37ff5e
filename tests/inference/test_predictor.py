"""pytest tests/inference/test_predictor.py: one model, opened once, answers often, and is left as it was."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from jaxtyping import config
from PIL import Image
from torch import nn

import vismoe
from vismoe.data import ImageSet, open_data
from vismoe.inference import evaluate
from vismoe.tasks import task_of

IMAGES = [Image.effect_noise((8 + number, 8), 80) for number in range(12)]


@pytest.fixture(scope="module")
def model():
    """Three named classes, told apart by weights that are drawn."""
    torch.manual_seed(0)
    network = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3, in_chans=1)
    nn.init.normal_(network.head.weight)
    network.pretrained_cfg |= {"label_names": ["cat", "dog", "owl"]}
    return network.eval()


@pytest.fixture
def exported(model, tmp_path):
    """The model as an ONNX file. Exported shapes are symbols, which the checks of signatures cannot tell apart."""
    config.update("jaxtyping_disable", True)
    try:
        return vismoe.export_onnx(model, tmp_path / "model.onnx", dynamic_batch=True).path
    finally:
        config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return vismoe.save(model, tmp_path_factory.mktemp("models") / "model")


def test_answers_say_names_probabilities_and_image(model, tmp_path):
    """The best class first; the probabilities of all classes sum to one; the image's path is the answer's."""
    IMAGES[0].save(tmp_path / "a.png")
    (answer,) = vismoe.Predictor(model).predict(tmp_path / "a.png")
    assert answer.image == str(tmp_path / "a.png")
    assert sorted(answer.names) == ["cat", "dog", "owl"]
    assert answer.probabilities == sorted(answer.probabilities, reverse=True)
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
    assert answer.classes == list(zip(answer.names, answer.probabilities, strict=True))


def answers_as_the_network(model, *sources):
    """Batches of any size give the same answers to 1e-5."""
    expected = vismoe.Predictor(model).predict(IMAGES)
    for source in sources:
        answers = vismoe.Predictor(source, batch_size=5).predict(IMAGES)
        assert [answer.names for answer in answers] == [answer.names for answer in expected]
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_folder_and_network_answer_alike(model, folder):
    """What a string names is opened."""
    answers_as_the_network(model, folder, str(folder))


@pytest.mark.slow
def test_exported_file_and_network_answer_alike(model, exported):
    """An ONNX file too; `vismoe predict` of one is compared in tests/deploy/test_onnx.py always."""
    answers_as_the_network(model, exported)


def test_threads_share_it(model):
    """Eight threads at once get what one gets, though each call switches a network that trains to evaluation."""
    model.train()
    predictor = vismoe.Predictor(model, batch_size=3)
    expected = predictor.predict(IMAGES)
    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(lambda _: predictor.predict(IMAGES), range(24)):
            assert answers == expected
    assert all(module.training for module in model.modules())
    model.eval()


def test_threads_that_share_a_model_alone_leave_it_as_it_was(model):
    """Eight predictors on one network that trains: blocks that overlap, the last of which restores."""
    model.train()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: vismoe.predict(model, IMAGES[:4]), range(40)))
    assert all(answer == answers[0] for answer in answers)
    assert all(module.training for module in model.modules())
    model.eval()


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("no answer")


@pytest.mark.parametrize("fails", [False, True])
def test_a_borrowed_model_comes_back_as_it_was(model, monkeypatch, fails):
    """Each submodule's own mode, one of them frozen in evaluation while the rest trains, also after an error."""
    model.train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    if fails:
        monkeypatch.setattr(model, "forward", Failing().forward)
    labelled = ImageSet(torch.tensor([0, 1, 2]), IMAGES.__getitem__)
    for borrow in (lambda: vismoe.predict(model, IMAGES[:3]), lambda: evaluate(model, labelled)):
        if fails:
            with pytest.raises(RuntimeError, match="no answer"):
                borrow()
        else:
            borrow()
        assert [module.training for module in model.modules()] == before
    model.eval()


def test_evaluate_opens_what_strings_name(model, folder, tmp_path):
    """A model folder and a folder of images, with classes matched by name."""
    for name in ("cat", "owl"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(IMAGES[:3]):
            image.save(tmp_path / name / f"{number}.png")
    evaluation = vismoe.evaluate(str(folder), tmp_path)
    assert evaluation.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert evaluation.score == evaluate(model, task_of(model).align_classes(open_data(str(tmp_path))).val).score


def test_random_weights_give_no_answers():
    """A preset's name is no trained model: answers by chance would look like answers."""
    with pytest.raises(ValueError, match="is a preset with random weights: name a trained network"):
        vismoe.Predictor("vmoe_pico_patch2_8_every2_e8")


def test_numbers_out_of_range(model):
    """Said before anything runs."""
    with pytest.raises(ValueError, match="batch_size=0: it must be at least 1"):
        vismoe.Predictor(model, batch_size=0)
    with pytest.raises(ValueError, match="topk=0: it must be at least 1"):
        vismoe.Predictor(model).predict(IMAGES, topk=0)
