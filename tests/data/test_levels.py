"""pytest tests/data/test_levels.py: grey images of 16 bits, of which cameras and scanners fill fewer."""

import numpy as np
import pytest
import torch
from PIL import Image

from vismoe.data import (
    MAX_LEVEL,
    cached_images,
    check_images,
    eight_bits,
    evaluation_transform,
    fingerprint_all,
    flatten_alpha,
    note_of_levels,
    open_data,
    training_transform,
)
from vismoe.deploy import export_onnx
from vismoe.inference import Predictor
from vismoe.tasks import Classification
from vismoe.training import Recipe, fit
from vismoe.weights import create_model, data_config, load_network, set_max_level
from vismoe.weights.exported.description import describe_model

from ..training.tiny import tiny

CONFIG = {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "interpolation": "bicubic", "crop_pct": 1.0}


def lay(root, largest, classes=("cat", "dog"), number=8):
    """Class folders of images of 16 bits whose largest level this is."""
    random = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for place in range(number):
            levels = random.integers(0, largest // 2, (8, 8)) + (largest - largest // 2) * index
            levels[0, 0] = largest
            Image.fromarray(levels.astype(np.uint16)).save(root / name / f"{place}.png")


@pytest.mark.parametrize("largest", [255, 1023, 4095, 16383])
@pytest.mark.parametrize("way", ["check", "split", "fingerprints"])
def test_images_of_fewer_bits_are_said(tmp_path, largest, way):
    """Images of 8, 10, 12 or 14 bits in files of 16 are nearly black: the set says so, and which option makes their
    largest level white, however its images are looked at."""
    lay(tmp_path, largest)
    data = open_data(str(tmp_path), 0 if way == "split" else None)
    data = fingerprint_all(data, 0.1)[0] if way == "fingerprints" else check_images(data, 0.1)
    note = note_of_levels(data)
    assert note.startswith(f"16-bit images have no level above {largest:,}: they seem to have")
    assert f"--max-level {largest} " in note
    assert note_of_levels(data, largest) == ""
    assert "all levels above max_level=200 become white" in note_of_levels(data, 200)


def test_images_of_all_bits_need_no_note(tmp_path):
    """Nothing is said of images that use their range."""
    lay(tmp_path, MAX_LEVEL)
    assert note_of_levels(check_images(open_data(str(tmp_path)), 0.1)) == ""


def test_the_largest_level_is_white():
    """With max_level=4095 the levels 0 … 4095 are black … white, what is above is white; the default is as before."""
    levels = np.array([[0, 2048, 4095, 60000]], np.uint16)
    assert np.asarray(eight_bits(Image.fromarray(levels), 4095)).tolist() == [[0, 128, 255, 255]]
    assert np.asarray(eight_bits(Image.fromarray(levels))).tolist() == [[0, 8, 16, 233]]


@pytest.mark.parametrize("make", [evaluation_transform, training_transform])
def test_transforms_take_the_level_from_the_configuration(make):
    """Training and evaluation see the same levels, and so does a cache of training images."""
    image = Image.fromarray(np.full((8, 8), 4095, np.uint16))
    assert make(CONFIG | {"max_level": 4095})({"image": image})["image"].unique().tolist() == [1.0]
    assert make(CONFIG)({"image": image})["image"].max() < 0.07


def test_a_cache_keeps_the_level(tmp_path):
    """Images that are kept in memory for training are as bright as without."""
    lay(tmp_path, 4095)
    images = open_data(str(tmp_path)).val
    assert cached_images(images, 8, 4095).image(0).getpixel((0, 0)) == 255


def test_a_transparent_level_stays_transparent():
    """PNG may name one level of 16 bits that is transparent (tRNS): it is white, as on any transparent image, and its
    neighbours, of the same eight bits, are not."""
    image = Image.fromarray(np.array([[1000, 1001, 60000]], np.uint16))
    image.info["transparency"] = 1000
    shown = np.asarray(flatten_alpha(eight_bits(image)).convert("L"))
    assert shown.tolist() == [[255, 4, 233]]


def test_a_file_with_a_transparent_level_is_read(tmp_path):
    """The same of a real file."""
    Image.fromarray(np.array([[1000, 1001, 60000]], np.uint16)).save(tmp_path / "x.png", transparency=1000)
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(flatten_alpha(eight_bits(image)).convert("L")).tolist() == [[255, 4, 233]]


def test_a_model_keeps_its_level(tmp_path):
    """What was trained with --max-level 4095 predicts with it: the folder has it, what describes an exported file too,
    and a file is answered like the image that was trained on."""
    lay(tmp_path / "set", 4095)
    recipe = tiny(data=str(tmp_path / "set"), steps=1, max_level=4095)
    model = fit(recipe, tmp_path / "run").load_model()
    assert data_config(model)["max_level"] == 4095
    white = np.full((8, 8), 4095, np.uint16)
    eight = Image.fromarray(np.full((8, 8), 255, np.uint8))
    for source in (model, tmp_path / "run"):
        predictor = Predictor(source)
        found, expected = (predictor.prepare({"image": image})["image"] for image in (Image.fromarray(white), eight))
        assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "run")(found[None]), model(found[None]))
    assert describe_model(model).preprocessing["max_level"] == 4095


@pytest.mark.slow
def test_an_exported_file_keeps_its_level(tmp_path):
    """An ONNX file is shown images as bright as its network was."""
    model = create_model("vmoe_pico_patch2_8_dense", num_classes=2)
    set_max_level(model, 4095)
    export_onnx(model, tmp_path / "model.onnx")
    image = Image.fromarray(np.full((8, 8), 4095, np.uint16))
    found, expected = (Predictor(source).prepare({"image": image}) for source in (tmp_path / "model.onnx", model))
    assert torch.equal(found["image"], expected["image"])
    assert found["image"].min() == 1


@pytest.mark.parametrize("level", [0, 65536])
def test_a_level_out_of_range_is_an_error(level):
    """Levels are those of 16 bits."""
    with pytest.raises(ValueError, match=f"max_level={level}: accepted are 1 to 65535"):
        Recipe(max_level=level)


def test_reports_show_what_the_network_sees(tmp_path, monkeypatch):
    """Figures of a run are drawn of images with the white level of its network."""
    lay(tmp_path / "set", 4095)
    seen = []
    monkeypatch.setattr(Classification, "report", lambda task, evaluation, images, folder: seen.append(images.image(0)))
    fit(tiny(data=str(tmp_path / "set"), max_level=4095, steps=1), tmp_path / "run")
    (image,) = seen
    assert (image.mode, image.getextrema()[1]) == ("L", 255)
