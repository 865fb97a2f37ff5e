"""Commands and functions with a detector: each works as with a classifier, or says what it needs.

python -m pytest tests/detection/test_commands.py
"""

import csv
import json
import re

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor

import vismoe
from vismoe.cli import main
from vismoe.data import open_data
from vismoe.detection import Detector
from vismoe.explain import routing_figure, routing_images
from vismoe.features import features
from vismoe.inference import Predictor
from vismoe.kernels import native
from vismoe.training import Recipe, fit
from vismoe.vit.masks import patch_mask

from .scenes import MODEL, tiny, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory, sketched):
    """A sparse detector after five steps."""
    return str(fit(tiny(scenes, steps=5), tmp_path_factory.mktemp("runs") / "sparse").path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, sketched):
    recipe = Recipe(model="vmoe_pico_patch2_8_dense", steps=1, batch_size=8, device="cpu")
    return str(fit(recipe, tmp_path_factory.mktemp("runs") / "classifier").path)


def test_upcycled(scenes, tmp_path, capsys):
    dense = fit(tiny(scenes, model="vmoe_pico_patch4_28_dense", steps=1), tmp_path / "dense").path
    assert main(["upcycle", str(dense), str(tmp_path / "sparse")]) == 0
    text = capsys.readouterr().out
    assert float(text.partition("random images: ")[2].partition(";")[0]) < 1e-4
    before, after = (vismoe.evaluate(path, str(scenes)).metrics for path in (dense, tmp_path / "sparse"))
    assert after["map50"] == pytest.approx(before["map50"], abs=0.02)


def test_densified(run, scenes, tmp_path, capsys):
    """The use of experts is measured without padding, on images placed as in evaluation."""
    assert main(["densify", run, str(tmp_path / "dense"), "--data", str(scenes), "--batch-size", "5"]) == 0
    assert main(["densify", run, str(tmp_path / "fewer"), "--data", str(scenes), "--num-experts", "4"]) == 0
    text = capsys.readouterr().out
    assert text.count("before: map 0.") == 2
    assert "loss" not in text
    assert isinstance(dense := vismoe.load(tmp_path / "dense"), Detector)
    assert dense.moe is None
    assert vismoe.load(tmp_path / "fewer").moe.num_experts == 4
    assert dense.pretrained_cfg["label_names"] == ["red", "blue"]


def test_padding_is_not_routed(run, scenes, tmp_path, monkeypatch):
    """In the figure of routing the patches of an image have colours, and padding is black."""
    drawn = []
    monkeypatch.setattr(routing_figure, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    data, predictor = open_data(str(scenes)), Predictor(run, optimized=False)
    assert routing_images(predictor, data.val, data.classes, tmp_path) == tmp_path / "routing.png"
    upper, _ = drawn[0].subfigs
    assert upper._suptitle.get_text() == "Which expert each patch went to (black: padding)"
    axes = np.array(upper.axes).reshape(3, -1)
    assert [row[0].get_ylabel() for row in axes] == ["", "block 1", "block 3"]
    shown = [data.val.sample(number) for number in routing_figure._samples(data.val.labels, 10)]
    for column, sample in zip(axes.T, shown, strict=True):
        mask = predictor.prepare(sample)["mask"]
        inside = patch_mask(mask[None], (4, 4))[0].repeat_interleave(4, 0).repeat_interleave(4, 1)
        for layer in column[1:]:
            coloured = layer.get_images()[0].get_array().max(-1) > 0
            assert np.array_equal(coloured, inside.numpy())


def test_cells_need_not_divide_the_image():
    """With a convolutional stem the last row and column of patches are cut."""
    routing = vismoe.explain.LayerRouting(torch.tensor([[[0], [1], [0], [1]]]), 2)
    axes = routing_figure.Figure().subplots()
    routing_figure._overlay(axes, np.ones((5, 7, 3)), routing, 0, (2, 2))
    image = np.asarray(axes.get_images()[0].get_array())
    assert image.shape == (5, 7, 3)
    assert np.allclose(image[:, :4], image[0, 0])
    assert np.allclose(image[:, 4:], image[0, 4])


@pytest.mark.skipif(native() is None, reason="needs compiled kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimized(dtype, run, scenes):
    """The packed form finds the same objects; in bfloat16 nearly."""
    if dtype == "bfloat16" and not native().has_bfloat16():
        pytest.skip("the processor has no bfloat16")
    plain, packed = Predictor(run, optimized=False), Predictor(run, dtype=dtype)
    assert not isinstance(packed.model.trunk.blocks[0].attn.qkv, torch.nn.Linear)
    data = open_data(str(scenes))
    batch = plain.collate([plain.prepare(data.val.sample(number)) for number in range(5)])

    def outputs(network: torch.nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
        found = network(batch["image"], batch["mask"])
        return [found.centres, found.quality, found.boxes]

    for one, other in zip(plain.run(batch, outputs), packed.run(batch, outputs), strict=True):
        assert other.dtype == torch.float32
        if dtype == "float32":
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        else:
            assert (one - other).abs().median() < 0.03 * one.abs().max()


def test_evaluated_and_measured(run, scenes, tmp_path, capsys):
    """`eval` in bfloat16, and `bench`, which counts the parameters of trunk, neck and head."""
    assert main(["eval", run, "--data", str(scenes), "--dtype", "bfloat16", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert 0 <= figures["map"] <= figures["map50"] <= 1
    table = tmp_path / "bench.csv"
    assert main(["bench", run, "--batch-sizes", "1", "--seconds", "0.01", "--csv", str(table)]) == 0
    row = next(csv.DictReader(table.read_text().splitlines()))
    parameters = sum(parameter.numel() for parameter in vismoe.load(run).parameters())
    assert (row["image_size"], int(row["parameters"])) == ("32", parameters)


def test_predicted(run, scenes):
    """`vismoe.predict` gives boxes inside each image, and `vismoe.evaluate` takes the paths of both."""
    files = sorted((scenes / "images" / "val").iterdir())
    predictions = vismoe.predict(vismoe.load(run), files)
    for file, prediction in zip(files, predictions, strict=True):
        assert prediction.image == str(file)
        height, width = prediction.size
        for box in prediction.boxes:
            left, top, right, bottom = box.box
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    assert 0 <= vismoe.evaluate(run, str(scenes)).score <= 1


def test_pushed(run, monkeypatch):
    """What is uploaded is the model folder, as for classifiers."""
    calls = []

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, name, **options):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "token")
    assert main(["push", run, "somebody/boxes"]) == 0
    assert calls[0]["folder_path"].name == "model"


CELLS = "a detector has features of cells, not one vector per image: name a classifier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "RUN", "--data", "SCENES", "--out", "OUT.npy"], CELLS),
        (["fewshot", "RUN", "--data", "digits"], CELLS),
        (
            ["fewshot", "CLASSIFIER", "--data", "SCENES"],
            "has boxes: few-shot accuracy needs images with one class each",
        ),
        (["eval", "RUN", "--data", "digits"], "the model finds objects, but digits has no boxes: name a folder with"),
        (["eval", "CLASSIFIER", "--data", "SCENES"], "the model is a classifier, but .* has boxes: name a folder with"),
        (
            ["eval", "RUN", "--group", "patient"],
            "group='patient': expected a classifier, got the task object-detection",
        ),
        (["upcycle", "RUN", "OUT"], r"trunk\.blocks\.1\.mlp is sparse already"),
        (["densify", "RUN", "OUT", "--data", "digits"], "the model finds objects, but digits has no boxes"),
    ],
)
def test_what_does_not_work_is_said(arguments, message, run, classifier, scenes, tmp_path, capsys):
    places = {"RUN": run, "CLASSIFIER": classifier, "SCENES": str(scenes), "OUT": str(tmp_path / "out")}
    for name, path in places.items():
        arguments = [argument.replace(name, path) if argument.startswith(name) else argument for argument in arguments]
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_python_says_the_same(run, classifier, scenes):
    detector, data = vismoe.load(run), open_data(str(scenes))
    with pytest.raises(ValueError, match=CELLS):
        features(detector, data.val)
    with pytest.raises(ValueError, match="the images have boxes"):
        vismoe.evaluate(vismoe.load(classifier), data.val)
    with pytest.raises(ValueError, match="the images have no boxes"):
        vismoe.evaluate(detector, open_data("digits").val)
    assert features(detector.trunk, data.val.subset(range(2))).shape[0] == 2


def test_images_with_boxes_have_features(scenes, tmp_path):
    """Of a network of images, with the classes that each shows."""
    out = tmp_path / "features.npy"
    assert main(["embed", MODEL, "--data", str(scenes), "--out", str(out), "--image-size", "32"]) == 0
    assert np.load(out).shape[0] == 17
    labels = [row["label"] for row in csv.DictReader(out.with_suffix(".csv").read_text().splitlines())]
    assert {"", "red|blue"} < set(labels)
