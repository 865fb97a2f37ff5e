"""pytest tests/tasks/test_third_task.py: a task that is one file trains, resumes, evaluates, predicts and saves."""

import csv
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import vismoe

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "digits", "--task", "offset", "--model", "timm:offset_pair", "--device", "cpu", "--flip", "0.5")
LENGTH = ("--steps", "60", "--batch-size", "16", "--warmup-steps", "5", "--evaluate-every", "20")


KILLED = """
import os, signal, sys
from vismoe.training.checkpointer import Checkpointer
from tests.tasks import offset

save = Checkpointer.save

def save_and_die(checkpointer, step, *rest):
    save(checkpointer, step, *rest)
    if step >= 30:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpointer.save = save_and_die
offset.main(sys.argv[1:])
"""
"""The command of a process that is killed right after a checkpoint."""


def command(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs Python at the root of the tests, where the task's file is found."""
    line = [str(python), *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def printed(python: Path, *arguments: object) -> str:
    """What the vismoe command of a program prints that has imported the task."""
    done = command(python, "-m", "tests.tasks.offset", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Digits, each beside itself shifted by up to two pixels either way, with a table of the shifts."""
    folder, generator = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    rows = [("file", "columns", "rows")]
    for number, digit in enumerate(load_digits().images[:64]):
        pixels = (255 - digit * (255 / 16)).round().astype(np.uint8)
        columns, down = (int(each) for each in generator.integers(-2, 3, 2))
        name = f"{number:02d}"
        Image.fromarray(pixels).save(folder / f"{name}.png")
        Image.fromarray(np.roll(pixels, (down, columns), (0, 1))).save(folder / f"{name}-other.png")
        rows.append((name, columns, down))
    with (folder / "offsets.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run(pairs, forked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert "within one" in printed(forked, *TRAIN, *LENGTH, "--data", pairs, "--out", out)
    return out


def test_it_trains(run):
    """Its own metric selects and is reported; its loss falls; there is no accuracy of classes anywhere."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert not any("accuracy" in line for line in lines)
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary)[:2] == ["within_one", "val_loss"]
    assert {path.name for path in run.glob("*.png")} == {"curves.png", "routing.png"}


def test_killed_it_resumes_bit_equal(run, pairs, forked, tmp_path):
    """Killed in the middle, it ends with the weights of the run that nobody killed."""
    out = tmp_path / "run"
    train = (*TRAIN, *LENGTH, "--data", pairs, "--out", out, "--checkpoint-every", "10", "--resume", "auto")
    assert command(forked, "-c", KILLED, *train).returncode == -signal.SIGKILL
    assert (out / "checkpoints" / "step-000030").exists()
    assert not (out / "model").exists()
    printed(forked, *train)
    ended, whole = (load_file(each / "model" / "model.safetensors") for each in (out, run))
    assert ended.keys() == whole.keys()
    assert all(ended[name].equal(whole[name]) for name in whole)


def test_eval_predict_and_load(run, pairs, forked):
    """The commands find the task in the model folder: the metric is the run's, the answers are the network's."""
    evaluated = json.loads(printed(forked, "eval", run, "--json"))
    assert evaluated["within_one"] == json.loads((run / "summary.json").read_text())["within_one"]
    predicted = json.loads(printed(forked, "predict", run, pairs / "00.png", pairs / "01.png", "--format", "json"))
    assert [set(each) for each in predicted] == [{"image", "offset"}] * 2
    assert "columns" in printed(forked, "predict", run, pairs / "00.png", "--format", "csv").splitlines()[0]
    from . import offset  # registers the network

    model = vismoe.load(run)
    assert isinstance(model, offset.PairNetwork)
    (answer,) = vismoe.predict(model, pairs / "00.png")
    assert answer.to_json()["offset"] == pytest.approx(predicted[0]["offset"], abs=1e-6)
