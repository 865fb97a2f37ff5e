"""pytest tests/cli/test_interrupted.py: Ctrl-C is no error: what is kept, and how to go on."""

import json
import os
import signal
import sys

import pytest

from vismoe.cli import main
from vismoe.training.step import Trainer

from ..adapt.test_finetune import fill

TINY = ["--batch-size", "8", "--device", "cpu"]


@pytest.fixture
def pressed(monkeypatch):
    """Ctrl-C in the second step of a training, before it is done."""
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


@pytest.fixture(autouse=True)
def answers_interrupts():
    """A shell starts what runs in the background with SIGINT ignored, which Python then leaves as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_in(monkeypatch, module, name, *signals):
    """These signals at the beginning of a function, as its caller knows it."""
    called = getattr(sys.modules[module], name)

    def pressing(*arguments, **options):
        for number in signals:
            os.kill(os.getpid(), number)
        return called(*arguments, **options)

    monkeypatch.setattr(f"{module}.{name}", pressing)


@pytest.mark.parametrize(
    ("options", "again"), [([], "from the beginning"), (["--checkpoint-every", "1"], "from the checkpoint of step 2")]
)
def test_a_training_that_is_done_is_finished(tmp_path, capsys, monkeypatch, options, again):
    """After the last step the first signal stops nothing, and a line says what is being done and where the run would
    be resumed from; the second one stops at once, and the run can be resumed."""
    press_in(monkeypatch, "vismoe.training.loop.fitting", "write_report", signal.SIGTERM)
    arguments = ["train", "digits_dense", "--steps", "2", *TINY, *options, "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    assert line(capsys) == (
        "vismoe: SIGTERM: the training is done; the last evaluation and the report are being finished. A second signal "
        f"stops at once; the run can then be resumed, {again}"
    )
    assert (tmp_path / "one" / "summary.json").exists()
    monkeypatch.undo()
    press_in(monkeypatch, "vismoe.training.loop.fitting", "write_report", signal.SIGTERM, signal.SIGINT)
    assert main([*arguments, str(tmp_path / "two")]) == 130
    first, second = capsys.readouterr().err.splitlines()
    assert again in first
    assert second.startswith("vismoe: interrupted: ")
    monkeypatch.undo()
    assert main([*arguments, str(tmp_path / "two"), "--resume", "auto"]) == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert (one["top1"], one["val_loss"]) == (two["top1"], two["val_loss"])


def test_a_signal_in_the_last_step(tmp_path, capsys, pressed):
    """It came too late to stop the training, which is said as soon as it is done."""
    assert main(["train", "digits_dense", "--steps", "2", *TINY, "--out", str(tmp_path / "run")]) == 0
    assert line(capsys).startswith("vismoe: Ctrl-C, SIGINT: the training is done;")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_test_of_finetune(tmp_path, capsys, monkeypatch, number, code):
    """A signal while the test split is evaluated stops at once: one line, the trained model, and the same command goes
    on."""
    out = tmp_path / "run"
    arguments = ["finetune", "--data", str(fill(tmp_path / "data", 8)), "--dense", "--epochs", "1", *TINY]
    arguments += ["--image-size", "8", "--out", str(out)]
    press_in(monkeypatch, "vismoe.adapt.classification.adaptation", "write_outcome", number)
    assert main(arguments) == code
    said = line(capsys)
    assert f"{number.name}: stopped before the test split was evaluated; {out}/model is the trained model" in said
    assert said.endswith("give the same command again to continue")
    assert (out / "model" / "config.json").exists()
    assert not (out / "report.json").exists()
    monkeypatch.undo()
    assert main(arguments) == 0
    assert (out / "report.json").exists()


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
