"""pytest tests/training/test_run_folder.py: what one training leaves behind."""

import json
import platform

import pytest
import timm
import torch
from PIL import Image

import vismoe
from vismoe.data import open_data
from vismoe.inference import evaluate
from vismoe.tasks import Classification, Detection
from vismoe.training import Recipe, Run, report

from .tiny import tiny


def test_everything_promised_is_there(run):
    """The files of a run folder, no more and no fewer: nothing half-written stays."""
    files = {file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file()}
    assert files == {
        "recipe.json",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "confusion.png",
        "routing.png",
        "model/config.json",
        "model/model.safetensors",
    }


def test_a_dense_run_has_no_routing_image(dense_run):
    """There are no experts to show."""
    assert not (dense_run.path / "routing.png").exists()
    assert (dense_run.path / "curves.png").is_file()


def test_images_can_be_opened(run):
    """The PNG files are images of a size to look at, and not blank."""
    for name in ("curves", "confusion", "routing"):
        with Image.open(run.path / f"{name}.png") as image:
            image.load()
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(2**24)) > 10


@pytest.mark.figures
def test_curves_name_their_splits(run, monkeypatch):
    """Loss and accuracy have one curve of the training split and one of the validation split, called so."""
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    report.draw_curves(run.metrics, Classification(["a", "b"]), run.path / "curves.png")
    for axes in drawn[0].axes[:2]:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    report.draw_curves(run.metrics, Classification(["a", "b"]), run.path / "curves.png", has_validation=False)
    for axes in drawn[1].axes[:2]:
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["training", "training split, evaluated"]


@pytest.mark.figures
@pytest.mark.parametrize(
    ("scores", "limits"),
    [([0.1, 0.3, 0.2], (0, 0.33)), ([0.9, 0.98], (0, 1.005)), ([0.0], (0, 1)), ([None], (0, 1)), ([20, 50], (0, 55))],
    ids=str,
)
def test_the_axis_of_a_low_metric_fits_it(tmp_path, monkeypatch, scores, limits):
    """A detector's mAP, often far below 1, fills its plot from 0 on; that of accuracies ends at 1."""
    drawn = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    lines = [{"step": 1, "loss": 1.0, "accuracy": 0.5, "load": {}}]
    lines += [{"step": step, "map": score, "top1": score} for step, score in enumerate(scores, start=1)]
    report.draw_curves(lines, Detection(["a"]), tmp_path / "curves.png")
    assert drawn[0].axes[1].get_ylim() == pytest.approx(limits)
    report.draw_curves(lines, Classification(["a"]), tmp_path / "curves.png")
    assert drawn[1].axes[1].get_ylim()[1] == 1.005


def test_the_recipe_is_written_resolved(run):
    """recipe.json holds every field, and reading it gives the recipe that was followed."""
    written = json.loads((run.path / "recipe.json").read_text())
    assert set(written) == set(Recipe.__dataclass_fields__)
    assert Run(run.path).recipe == tiny()


def test_the_environment_is_written(run):
    """Versions as they are installed, and the state of the git checkout one stands in."""
    written = json.loads((run.path / "environment.json").read_text())
    assert written["python"] == platform.python_version()
    assert {name: written["packages"][name] for name in ("vismoe", "torch", "timm")} == {
        "vismoe": vismoe.__version__,
        "torch": torch.__version__.partition("+")[0],
        "timm": timm.__version__,
    }
    assert {"git_commit", "git_changes", "accelerator", "threads"} <= set(written)


def test_git_state_is_that_of_the_checkout(tmp_path, monkeypatch):
    """Commit and changes are git's own words, and unknown, not clean, outside any checkout."""
    import subprocess

    from vismoe.training.run import environment

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    outside = environment()
    assert (outside["git_commit"], outside["git_changes"]) == (None, None)

    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "-m", "a")
    clean = environment()
    assert (clean["git_commit"], clean["git_changes"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "a").write_text("2")
    assert environment()["git_changes"] is True


def test_metrics_are_one_json_object_a_line(run):
    """Every line parses by itself; the last training line holds loss, accuracy and the load of each layer's experts."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    held_out, training = lines[-2:]
    assert 0 <= held_out["top1"] <= 1
    assert held_out["val_loss"] > 0
    assert training["loss"] > 0
    assert set(training["load"]) == {"blocks.1.mlp", "blocks.3.mlp"}
    for load in training["load"].values():
        assert len(load) == 8
        assert abs(sum(load) - 1) < 1e-5


def test_the_summary_is_the_trained_model_s(run):
    """summary.json says what the model in the folder really does on the held-out part."""
    again = evaluate(vismoe.load(run.path), open_data("digits").val)
    assert run.summary["held_out_images"] == 450
    assert run.summary["top1"] == again.score
    assert run.summary["load"] == again.load
    assert abs(run.summary["val_loss"] - again.metrics["loss"]) < 1e-6


def test_the_model_folder_opens_everywhere(run):
    """vismoe.load of the run or of its model/ and timm's local-dir give one network: equal logits and class names."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    models = [
        run.load_model(),
        vismoe.load(run.path),
        vismoe.load(run.path / "model"),
        timm.create_model(f"local-dir:{run.path / 'model'}", pretrained=True).eval(),
    ]
    with torch.inference_mode():
        logits = [model(images) for model in models]
    for other in logits[1:]:
        assert torch.equal(logits[0], other)
    assert models[0].pretrained_cfg["label_names"] == [str(number) for number in range(10)]


def test_the_model_folder_holds_what_was_trained(tmp_path, monkeypatch):
    """Logits of the opened folder equal those of the network that training left in memory."""
    from vismoe.training import fit
    from vismoe.training.loop import fitting

    trained = []
    monkeypatch.setattr(fitting, "write_report", lambda run, state, *rest: trained.append(state.model))
    fit(tiny(steps=2), tmp_path / "run")
    images = torch.rand(4, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(trained[0].eval()(images), vismoe.load(tmp_path / "run")(images))


def test_a_run_is_found_from_its_model_folder(run, tmp_path):
    """The recipe of a model in model/ is the run's; elsewhere there is none."""
    assert Run.of(run.path) == Run.of(run.path / "model") == Run(run.path)
    assert Run.of(tmp_path) is None
