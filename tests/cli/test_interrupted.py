"""pytest tests/cli/test_interrupted.py: Ctrl-C is no error: what is kept, and how to go on."""

import os
import signal

import pytest

from vismoe.cli import main
from vismoe.training.step import Trainer

from ..adapt.test_finetune import fill

TINY = ["--batch-size", "8", "--device", "cpu"]


@pytest.fixture
def pressed(monkeypatch):
    """Ctrl-C in the second step of a training."""
    step = Trainer.step

    def pressing(trainer, *arguments, **options):
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", pressing)


def line(capsys):
    (said,) = capsys.readouterr().err.splitlines()
    assert "error" not in said
    return said


def test_train(tmp_path, capsys, pressed, monkeypatch):
    """One line without the word error, exit code 130, the checkpoint's folder, and options that do go on."""
    out = tmp_path / "run"
    arguments = ["train", "digits_dense", "--steps", "4", *TINY]
    assert main([*arguments, "--out", str(out)]) == 130
    assert line(capsys) == (
        f"vismoe: Ctrl-C, SIGINT: stopped after step 2 of 4; a checkpoint is in {out}/checkpoints. To "
        f"continue, repeat the command with --out {out} --resume auto"
    )
    monkeypatch.undo()
    assert main([*arguments, "--out", str(out), "--resume", "auto"]) == 0
    assert (out / "summary.json").exists()


def test_finetune(tmp_path, capsys, pressed):
    """The same; the model as it is then is there."""
    out = tmp_path / "run"
    arguments = ["finetune", "--data", str(fill(tmp_path / "data", 8)), "--dense", "--epochs", "3", *TINY]
    assert main([*arguments, "--image-size", "8", "--out", str(out)]) == 130
    said = line(capsys)
    assert said.startswith(f"vismoe: Ctrl-C, SIGINT: stopped; {out}/model is the model at this step")
    assert said.endswith("give the same command again to continue")
    assert (out / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("verb", "kept"), [("finetune", "the same command continues"), ("models", "no file is left half-written")]
)
def test_outside_of_a_training(capsys, monkeypatch, verb, kept):
    """Where no step is under way it ends at once, and says what is left."""

    def press(*arguments, **options):
        raise KeyboardInterrupt

    module = {"finetune": "vismoe.cli.training.finetune", "models": "vismoe.cli.models.models"}[verb]
    monkeypatch.setattr(f"{module}.main", press)
    assert main([verb]) == 130
    said = line(capsys)
    assert said.startswith("vismoe: interrupted: ")
    assert kept in said
