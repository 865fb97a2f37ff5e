"""pytest tests/training/test_copies.py: a run on a folder with copies of images."""

import json

import numpy as np
import pytest
from PIL import Image

from vismoe.adapt import run_splits
from vismoe.data import open_data
from vismoe.training import Run, fit
from vismoe.training.run import describe
from vismoe.training.step import Trainer

from .tiny import tiny


class KilledError(Exception):
    """What ends a run in the middle."""


def sides(data):
    return [list(split.files) for split in data.train_and_val]


@pytest.fixture
def folder(tmp_path):
    """Two classes of twelve files each that show four images, three times each."""
    for shade, name in enumerate(("dark", "light")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(4 * shade + number % 4).integers(100 * shade, 100 * shade + 99, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


@pytest.fixture
def recipe(folder):
    return tiny(data=str(folder), checkpoint_every=2)


def killed(monkeypatch, recipe, out):
    """A run that ends after its second step, which has a checkpoint."""
    step = Trainer.step

    def dying(trainer, *arguments, **options):
        if trainer.state.step == 3:
            raise KilledError
        return step(trainer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(KilledError):
            fit(recipe, out)


def test_copies_are_on_one_side_of_a_run(folder, recipe, tmp_path):
    """Of no image is a copy trained on and another evaluated on, and run_splits tells the run's own split."""
    run = fit(recipe, tmp_path / "run")
    train, val = sides(run_splits(run))
    assert sorted(train + val) == sorted(open_data(str(folder)).val.files)
    images = [{(file.split("/")[0], int(file.split("/")[1][:-4]) % 4) for file in part} for part in (train, val)]
    assert len(images[0]) + len(images[1]) == 8
    assert run.moved
    assert describe(open_data(str(folder), 0))["digest"] == run.data["digest"]


def test_a_resumed_run_has_the_same_split(monkeypatch, recipe, tmp_path):
    """It goes on with what data.json says, with no image decoded to split them anew, and ends as one never killed."""
    whole = fit(recipe, tmp_path / "whole")
    killed(monkeypatch, recipe, tmp_path / "cut")
    monkeypatch.setattr("vismoe.data.splits.folder_split.try_fingerprints", None)
    cut = fit(recipe, tmp_path / "cut", resume=True)
    assert cut.data == whole.data
    weights, others = (run.load_model().state_dict() for run in (whole, cut))
    assert all((weights[name] == others[name]).all() for name in weights)


def test_runs_from_before_go_on_with_their_split(monkeypatch, folder, recipe, tmp_path):
    """A run folder whose data.json knows of nothing moved, as 1558405 wrote them, has the split of each class alone,
    with copies on both sides: it is resumed with that, and what it is evaluated on is that."""
    old = open_data(str(folder), 0, moved=())
    with monkeypatch.context() as patch:
        patch.setattr("vismoe.data.sets.split_folder", lambda data, *_: old)
        killed(monkeypatch, recipe, tmp_path / "run")
    path = tmp_path / "run" / "data.json"
    written = json.loads(path.read_text())
    assert written.pop("moved") == []
    path.write_text(json.dumps(written))
    run = fit(recipe, tmp_path / "run", resume=True)
    assert sides(run_splits(run)) == sides(old) != sides(open_data(str(folder), 0))
    assert run.metrics[-1]["step"] == 4


def test_what_is_wrong_with_a_recipe_is_said_before_images_are_decoded(monkeypatch, recipe, tmp_path):
    """A large folder takes minutes to look through."""
    monkeypatch.setattr("vismoe.data.splits.folder_split.try_fingerprints", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="exists"):
        fit(recipe, tmp_path / "run")
    with pytest.raises(ValueError, match="model"):
        fit(tiny(data=recipe.data, model="no_such_model"), tmp_path / "other")
    assert Run.of(tmp_path / "other") is None
