"""Training of a detector: from a recipe made for classes, with undefined scores, and what is drawn of it.

python -m pytest tests/detection/test_training.py
"""

import json
import math

import pytest
import torch

from vismoe.cli import main
from vismoe.data import open_data
from vismoe.inference import Predictor
from vismoe.tasks import Detection
from vismoe.training import Run, fit, report
from vismoe.training.loop import balance
from vismoe.training.state import State

from .scenes import MODEL, tiny, write_scenes

SMALL = ["--steps", "2", "--batch-size", "4", "--image-size", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.mark.parametrize("model", [MODEL, "timm:test_vit"])
def test_train_images_takes_a_folder_with_boxes(model, scenes, tmp_path, capsys):
    """Nothing has to be set for boxes; what the recipe for classes has and boxes cannot have is off, and said."""
    out = tmp_path / "run"
    assert main(["train", "images", "--data", str(scenes), "--model", model, *SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "note: degrees=0.0 instead of 10.0, label_smoothing=0.0 instead of 0.05, because the task" in printed.err
    assert "validation: map 0." in printed.out
    run = Run(out)
    assert (run.recipe.degrees, run.recipe.shear, run.recipe.label_smoothing) == (0, 0, 0)
    assert run.load_model().pretrained_cfg["problem_type"] == Detection.name
    again = ["train", "images", "--data", str(scenes), "--model", model, *SMALL, "--out", str(out), "--resume", "auto"]
    assert main(again) == 0  # the recipe is that of the run


@pytest.mark.parametrize(
    "changes", [{"degrees": 20.0}, {"shear": 3.0}, {"mixup": 0.2}, {"cutmix": 0.2}, {"class_weights": 0.5}]
)
def test_what_boxes_cannot_have_is_refused(changes, scenes, tmp_path):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value}: the task object-detection does not have it; set it to 0"):
        fit(tiny(scenes, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_for_classes_does_not_take_boxes(scenes, tmp_path):
    with pytest.raises(ValueError, match="has boxes; accepted are auto, object-detection"):
        fit(tiny(scenes, task="multi_label_classification"), tmp_path / "run")


def test_further_images_need_boxes(scenes, tmp_path):
    with pytest.raises(ValueError, match=r"extra_eval\['night'\] has no boxes"):
        fit(tiny(scenes), tmp_path / "run", extra_eval={"night": open_data("digits").val})
    assert not (tmp_path / "run").exists()


def test_an_undefined_score_is_never_the_best():
    network = torch.nn.Linear(1, 1)
    state = State(network, torch.optim.SGD(network.parameters()), None)
    state.best_loss = 2.0
    for step, (score, loss, best) in enumerate(
        [(math.nan, 1.0, None), (0.1, None, 2), (math.nan, 0.5, 2), (0.2, None, 4)], start=1
    ):
        state.step = step
        assert state.update_best(score, loss) == (best == step)
        assert state.best_step == best


def test_without_objects_scores_are_undefined(tmp_path, capsys):
    """No validation image has an object: the run ends, keeps its last weights, and says so."""
    data, out = write_scenes(tmp_path / "scenes", empty=True), tmp_path / "run"
    options = ["--keep", "best", "--evaluate-every", "1", "--checkpoint-every", "1", "--patience", "1"]
    assert main(["train", "images", "--data", str(data), "--model", MODEL, *SMALL, *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "validation undefined" in printed
    assert "validation: map undefined" in printed
    assert "has no object: the metrics are not defined" in printed
    assert json.loads((out / "summary.json").read_text())["map"] is None
    assert [line["step"] for line in Run(out).metrics if "map" in line] == [1]  # patience is not endless


@pytest.mark.figures
def test_curves_have_the_primary_metric(tmp_path, monkeypatch):
    """There is no validation loss: the metric has its curve nonetheless."""
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    lines = [{"step": 1, "loss": 2.0, "load": {}}, {"step": 1, "map": None}, {"step": 2, "map": 0.25}]
    report.draw_curves(lines, Detection(["a"]), tmp_path / "curves.png")
    loss, metric = drawn[0].axes
    assert [line.get_label() for line in loss.get_lines()] == ["training"]
    assert [line.get_xydata().tolist() for line in metric.get_lines()] == [[[2.0, 0.25]]]
    assert metric.get_ylabel() == "mAP"


def test_batches_that_are_kept_hold_no_shared_memory():
    """Boxes from data workers are lists of tensors: they are counted, and copied too."""
    shared = torch.ones(3, 4).share_memory_()
    batch = {"image": torch.zeros(2, 5), "boxes": [shared, shared[:1]], "name": ["a", "b"]}
    assert balance._bytes_of(batch) == 4 * (10 + 12 + 4)
    copies = balance._unshared(batch["boxes"])
    assert not any(copy.is_shared() for copy in copies)
    assert torch.equal(copies[0], shared)


def test_detectors_have_small_batches():
    """Unless the caller says otherwise: memory grows with the size of images, and larger batches are not faster."""
    network = torch.nn.Linear(1, 1)
    network.pretrained_cfg = {}
    assert Predictor(network, Detection(["a"])).batch_size == 16
    assert Predictor(network).batch_size == 64
    assert Predictor(network, Detection(["a"]), batch_size=100).batch_size == 100
