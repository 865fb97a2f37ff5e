"""pytest tests/training/test_refusals.py: what cannot be trained is said before anything is written."""

from dataclasses import replace

import pytest
from PIL import Image

import vismoe
from vismoe.data import open_data
from vismoe.training import fit, free_path

from .tiny import tiny


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"experts_per_token": 9}, ValueError, "k=9 experts per token, but there are only num_experts=8"),
        ({"model": "vmoe_pico_patch2_8_every2_e9"}, ValueError, "unknown preset .*; did you mean .*every2_e8"),
        ({"data": "no/such/folder"}, FileNotFoundError, "no/such/folder.*no such folder"),
        ({"device": "quantum"}, ValueError, "device 'quantum' is not available; accepted are auto, cpu"),
        ({"model": "vmoe_pico_patch2_8_dense", "num_experts": 4}, ValueError, "num_experts"),
    ],
)
def test_nothing_is_written_before_the_recipe_can_be_followed(tmp_path, changes, error, message):
    """An impossible recipe leaves no folder behind."""
    with pytest.raises(error, match=message):
        fit(tiny(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_data_without_a_part_to_train_on_is_refused(tmp_path):
    """A folder that has nothing but a held-out part is not trained on it."""
    (tmp_path / "data" / "val" / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "data" / "val" / "a" / "x.png")
    with pytest.raises(ValueError, match=r"expected the folder .*data/train"):
        fit(tiny(data=str(tmp_path / "data")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class_is_no_choice(tmp_path):
    """A set with one class is refused before anything is written."""
    for part in ("train", "val"):
        (tmp_path / "data" / part / "only").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / part / "only" / "x.png")
    with pytest.raises(ValueError, match="has one class, only: a classifier needs at least two"):
        fit(tiny(data=str(tmp_path / "data")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (lambda val: val.subset([]), r"extra_eval\['night'\] has no images: expected at least one"),
        (lambda val: replace(val, labels=val.labels + 5), r"labels 5 to 14: expected class numbers, 0 to 9"),
        (lambda val: replace(val, labels=val.labels - 1), r"labels -1 to 8: expected class numbers, 0 to 9"),
        (lambda val: replace(val, labels=val.labels[:, None] > 3), r"labels of shape \(\d+, 1\): expected \('N',\)"),
    ],
)
def test_further_images_are_looked_at_first(tmp_path, further, message):
    """extra_eval={…} with what could not be evaluated is refused before the first step."""
    with pytest.raises(ValueError, match=message):
        fit(tiny(), tmp_path / "run", extra_eval={"night": further(open_data("digits").val)})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_left_untouched(tmp_path):
    """A folder with anything in it is an error and stays as it was; an empty one may be filled."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("kept")
    with pytest.raises(FileExistsError, match="exists: choose another --out"):
        fit(tiny(), tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["precious"]
    assert (tmp_path / "run" / "precious").read_text() == "kept"


def test_a_field_that_no_recipe_has_is_refused(tmp_path, monkeypatch):
    """vismoe.train("digits", stepz=3) names the slip."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no field 'stepz'"):
        vismoe.train("digits", stepz=3)
    assert list(tmp_path.iterdir()) == []


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    """runs/NAME, then runs/NAME-2, then the first number that is free."""
    monkeypatch.chdir(tmp_path)
    small = {"steps": 1, "batch_size": 8, "device": "cpu"}
    assert vismoe.train("digits_dense", **small).path.as_posix() == "runs/digits_dense"
    assert vismoe.train("digits_dense", **small).path.as_posix() == "runs/digits_dense-2"
    assert free_path(tmp_path / "runs" / "digits_dense").name == "digits_dense-3"


def test_a_task_for_other_labels_is_refused_before_anything_is_written(tmp_path):
    """Digits show one class each: several labels would be compared with numbers of classes."""
    with pytest.raises(ValueError, match="digits has one label per image; accepted are auto, classification"):
        fit(tiny(task="multi_label_classification"), tmp_path / "run")
    with pytest.raises(ValueError, match="unknown task 'nothing'; accepted are auto, classification, multi_label"):
        fit(tiny(task="nothing"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
