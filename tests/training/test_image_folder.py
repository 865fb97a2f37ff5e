"""pytest tests/training/test_image_folder.py: a run on a person's own folder of images."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vismoe.data import open_data
from vismoe.inference import evaluate, predict
from vismoe.training import Run, fit

from .tiny import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red and blue images of odd sizes, three classes of them in train/, two in val/."""
    place, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for part, classes, count in (("train", ("blue", "grün", "red"), 6), ("val", ("blue", "red"), 4)):
        for name in classes:
            (place / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 40, (11 + number, 17, 3), np.uint8)
                pixels[:, :, ("red", "grün", "blue").index(name)] += 200
                Image.fromarray(pixels).save(place / part / name / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, sketched):
    recipe = tiny(data=str(folder), steps=30, learning_rate=3e-3, warmup_steps=3)
    return fit(recipe, tmp_path_factory.mktemp("runs") / "colours")


def test_the_colours_are_told_apart(run, folder):
    """Colour images of any size train a network of three channels that knows the classes by name."""
    model = run.load_model()
    assert model.in_chans == 3
    assert model.pretrained_cfg["label_names"] == ["blue", "grün", "red"]
    assert run.summary["top1"] == evaluate(model, open_data(str(folder)).val).score == 1.0


def test_changed_images_are_noticed_by_a_resumed_run(run, folder, tmp_path):
    """Other contents of a file of the same name: by its size. Runs of earlier versions have no sizes."""
    shutil.copytree(folder, tmp_path / "set")
    recipe, data = run.recipe, replace(open_data(str(folder)), name=str(tmp_path / "set"))
    made = Run.create(tmp_path / "run", recipe, data)
    assert Run.reopen(made.path, recipe, data) == made
    file = tmp_path / "set" / "train" / "red" / "0.png"
    Image.new("RGB", (17, 11), "green").save(file)
    with pytest.raises(ValueError, match=r"have changed since .*: their files have other sizes in bytes"):
        Run.reopen(made.path, recipe, data)
    made.write("data.json", {name: value for name, value in made.data.items() if name != "sizes"})
    assert Run.reopen(made.path, recipe, data) == made


def test_predictions_carry_the_names_of_folders(run, folder):
    """predict names classes as their folders are named."""
    found = predict(run.load_model(), folder / "val" / "red")
    assert [prediction.classes[0][0] for prediction in found] == ["red"] * 4
    assert [len(prediction.classes) for prediction in found] == [3] * 4
