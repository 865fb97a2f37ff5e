"""pytest tests/serve/test_answers.py: a service answers as `vismoe predict`, `embed` and `explain` do."""

import base64
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

import vismoe
from vismoe.data import ImageSet
from vismoe.explain import trace_image
from vismoe.features import features
from vismoe.serve import Models, open_served
from vismoe.serve.answers import Embed, Explain, Predict
from vismoe.tasks import Prediction
from vismoe.tasks.classification import Classification
from vismoe.tasks.detection import Detection

from .conftest import IMAGES, NAMES, encoded, files, network, refusal

CONTENTS = [encoded(image) for image in IMAGES]


def same_as_predictor(answer, folder, topk=5):
    expected = vismoe.Predictor(str(folder)).predict(IMAGES, topk)
    assert [[each["label"] for each in found] for found in answer] == [prediction.names for prediction in expected]
    for found, prediction in zip(answer, expected, strict=True):
        assert [each["probability"] for each in found] == pytest.approx(prediction.probabilities, abs=1e-5)


def test_predictions_are_those_of_the_predictor(shared, folder):
    """From a form and from JSON, in the order of the images; `topk` cuts the list."""
    as_form = shared.post("/v1/predict", files=files(*CONTENTS)).json()
    same_as_predictor(as_form["predictions"], folder)
    assert as_form["milliseconds"] > 0
    images = [base64.b64encode(content).decode() for content in CONTENTS]
    images[0] = f"data:image/png;base64,{images[0]}"  # as a browser has it
    as_json = shared.post("/v1/predict", json={"images": images, "topk": 2}).json()
    same_as_predictor(as_json["predictions"], folder, topk=2)


def test_many_clients_get_their_own_answers(start, folder):
    """Images of several requests share batches, and none gets another's answer."""
    client = start()
    expected = vismoe.Predictor(str(folder)).predict(IMAGES)
    with ThreadPoolExecutor(8) as pool:
        asked = list(range(len(IMAGES))) * 5
        answers = list(pool.map(lambda n: client.post("/v1/predict", files=files(CONTENTS[n])).json(), asked))
    for number, answer in zip(asked, answers, strict=True):
        (found,) = answer["predictions"]
        assert [each["probability"] for each in found] == pytest.approx(expected[number].probabilities, abs=1e-5)


def test_a_capacity_is_that_of_one_request(shared, folder):
    """The answer is that of an image alone at this capacity; afterwards the model has its own again."""
    data = {"capacity": "0.25", "topk": "3"}
    (one, other) = shared.post("/v1/predict", files=files(*CONTENTS[:2]), data=data).json()["predictions"]
    predictor = vismoe.Predictor(str(folder))
    for found, image in zip((one, other), IMAGES, strict=False):
        expected = trace_image(predictor, image, 0.25).prediction
        assert [each["probability"] for each in found] == pytest.approx(expected.probabilities, abs=1e-5)
    assert one != shared.post("/v1/predict", files=files(CONTENTS[0])).json()["predictions"][0]
    same_as_predictor(shared.post("/v1/predict", files=files(*CONTENTS)).json()["predictions"], folder)


def test_explain_shows_each_patchs_expert(shared, folder):
    """As `vismoe.explain.trace_image`; what is shown back is a PNG that the service made."""
    answer = shared.post("/v1/explain", files=files(CONTENTS[0]), data={"capacity": "0.5"}).json()
    trace = trace_image(vismoe.Predictor(str(folder)), IMAGES[0], 0.5, rollout=True)
    expected = trace.to_json()
    assert [layer["expert"] for layer in answer["layers"]] == [layer["expert"] for layer in expected["layers"]]
    assert answer["kept"] == pytest.approx(expected["kept"])
    assert answer["kept"] < 1
    assert torch.tensor(answer["rollout"]).allclose(torch.tensor(expected["rollout"]), atol=1e-5)
    assert (answer["width"], answer["height"]) == (8, 8)
    assert base64.b64decode(answer["image"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert [each["label"] for each in answer["predictions"]] == trace.prediction.names


def test_embeddings_are_those_of_the_network(shared, folder):
    answer = shared.post("/v1/embed", files=files(*CONTENTS)).json()["embeddings"]
    images = ImageSet(torch.zeros(len(IMAGES), 0, dtype=torch.bool), lambda number: IMAGES[number])
    assert torch.tensor(answer).allclose(features(vismoe.load(folder), images), atol=1e-4)


def test_facts_of_a_model(shared, folder):
    """What the page needs; the folders that the model lies in are not told."""
    (facts,) = shared.get("/v1/model").json()["models"]
    model = network()
    assert facts["name"] == "tiny"
    assert facts["classes"] == NAMES
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["macs"] == vismoe.vit.cost(model, (1, 8, 8)).macs
    assert facts["active_parameters"] < facts["parameters"]
    assert facts["layers"] == [{"name": f"blocks.{number}", "experts": 8, "k": 1} for number in (1, 3)]
    assert (facts["sparse"], facts["capacity"], facts["embedding"], facts["run"]) == (True, True, True, False)


def test_two_models(start, folder, tmp_path):
    """The second one is named by its place; a dense one has no capacity; a model without a run has no curves."""
    dense = vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=3, in_chans=1)
    vismoe.save(dense, tmp_path / "dense")
    client = start(Models([str(folder), str(tmp_path / "dense")]))
    assert [facts["name"] for facts in client.get("/v1/model").json()["models"]] == ["tiny", "dense"]
    (found,) = client.post("/v1/predict", files=files(CONTENTS[0]), data={"model": "1"}).json()["predictions"]
    (expected,) = vismoe.Predictor(tmp_path / "dense").predict(IMAGES[0])
    assert [each["probability"] for each in found] == pytest.approx(expected.probabilities, abs=1e-5)
    data = {"model": "1", "capacity": "1"}
    assert refusal(client.post("/v1/predict", files=files(CONTENTS[0]), data=data)) == (422, "not_supported")
    assert refusal(client.post("/v1/predict", files=files(CONTENTS[0]), data={"model": "2"})) == (404, "no_model")
    for path, code in (("/v1/experts", "no_data"), ("/v1/run", "no_run")):
        assert refusal(client.get(path)) == (404, code)
        assert refusal(client.get(path, params={"model": 7})) == (404, "no_model")


def test_a_detector_answers_with_boxes(start, tmp_path):
    """In pixels of the image that was sent, as the predictor's."""
    torch.manual_seed(0)
    trunk = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=0, in_chans=1)
    detector = vismoe.detection.make_detector(trunk, 3, (8, 8))
    torch.nn.init.constant_(detector.head.centre.bias, 0.0)
    Detection(NAMES).save(detector, tmp_path / "detector")
    client = start(Models([str(tmp_path / "detector")]))
    (found,) = client.post("/v1/predict", files=files(CONTENTS[3])).json()["predictions"]
    (expected,) = vismoe.Predictor(str(tmp_path / "detector")).predict(IMAGES[3])
    assert found
    assert [each["label"] for each in found] == [box.name for box in expected.boxes]
    for each, box in zip(found, expected.boxes, strict=True):
        assert each["box"] == pytest.approx(box.box, abs=0.01)
        assert each["probability"] == pytest.approx(box.score, abs=1e-5)
    assert refusal(client.post("/v1/embed", files=files(CONTENTS[0]))) == (422, "not_supported")


def test_damaged_weights_are_not_served(tmp_path):
    """A network whose answers are not finite is refused before it answers anybody."""
    model = network()
    torch.nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        open_served(str(vismoe.save(model, tmp_path / "nan")))


def test_a_model_of_another_task_is_not_served(folder, monkeypatch):
    """It is refused at start, not at the first request."""

    class Other(Prediction):
        def to_json(self):
            return {}

        columns = to_json

    monkeypatch.setattr(Classification, "predictions", lambda self, outputs, images, topk: [Other() for _ in images])
    with pytest.raises(ValueError, match="its task is classification: the service answers for classifiers and"):
        open_served(str(folder))


def test_images_do_not_compete_across_requests(tmp_path):
    """Where tokens compete for places in experts, an image is a batch of its own: whose images share a batch is no
    matter of the answer."""
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3, in_chans=1, eval_capacity_factor=0.5)
    assert open_served(str(vismoe.save(model, tmp_path / "tight"))).largest_batch == 1
    assert open_served(str(vismoe.save(network(), tmp_path / "free"))).largest_batch is None


def test_images_wait_as_the_network_sees_them(models):
    """Not decoded at their own size: 64 large photographs that wait would take gigabytes."""
    large = encoded(Image.new("L", (3000, 2000)))
    for work in (Predict(models[0]), Embed(models[0]), Explain(models[0], None, 5)):
        assert work.prepare(large)["image"].shape == (1, 8, 8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps freed memory")
def test_memory_of_large_images_is_returned(models):
    """What decoding took does not stay with the process."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    large = encoded(Image.new("RGB", (5000, 4000)), "JPEG")
    work = Predict(models[0])
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work.prepare, CONTENTS[:2]))
        before = resident()
        list(threads.map(work.prepare, [large] * 8))
        assert resident() - before < 50e6  # one image has 60 MB
