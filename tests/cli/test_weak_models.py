"""pytest tests/cli/test_weak_models.py: a model that is of no use, and a training that is too short, are told."""

import json
import re

import pytest
import torch
from PIL import Image

from vismoe.cli import main

ALWAYS = "for every image: it distinguishes no classes"


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Two classes of the same noise: there is nothing to learn."""
    place = tmp_path_factory.mktemp("alike")
    for name in ("round", "long"):
        (place / "set" / name).mkdir(parents=True)
        for number in range(40):
            generator = torch.Generator().manual_seed(1000 * number + len(name))
            pixels = torch.randint(0, 255, (9, 9), generator=generator).byte().numpy()
            Image.fromarray(pixels).save(place / "set" / name / f"{number}.png")
    return place


def test_train_and_eval_say_that_a_model_is_useless(alike, capsys):
    """One step with a rate of nearly nothing: in the output of `train`, in summary.json, and in that of `eval` and its
    JSON. A run of fewer steps than one pass, or of few, is told with what one pass takes."""
    out = alike / "run"
    arguments = ["train", "digits_dense", "--data", str(alike / "set"), "--batch-size", "8", "--device", "cpu"]
    assert main([*arguments, "--steps", "1", "--learning-rate", "1e-9", "--warmup-steps", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    weakness = json.loads((out / "summary.json").read_text())["weakness"]
    assert weakness.startswith("the model")
    assert f"warning: {weakness}" in printed
    assert "warning: 1 step of 8 images is less than one pass over the 60 training images, which takes 8" in printed
    assert "use --steps 50 or more" in printed
    assert main(["eval", str(out), "--device", "cpu"]) == 0
    assert f"warning: {weakness}" in capsys.readouterr().out
    assert main(["eval", str(out), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["weakness"] == weakness
    assert main([*arguments, "--steps", "9", "--out", str(alike / "longer")]) == 0
    assert "9 steps are few; training usually needs 50 or more: use --steps 50 or more" in capsys.readouterr().out


def test_finetune_says_it_and_the_card_does(alike, capsys):
    """In its last lines, in place of what to do with a good model, in report.json and on the card."""
    out = alike / "tuned"
    arguments = ["finetune", "--data", str(alike / "set"), "--dense", "--epochs", "1", "--device", "cpu"]
    assert main([*arguments, "--image-size", "8", "--learning-rate", "1e-9", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    weakness = json.loads((out / "report.json").read_text())["weakness"]
    assert f"warning: {weakness}" in printed
    assert "next: vismoe predict" not in printed
    assert f"**Warning:** {weakness}" in (out / "model" / "README.md").read_text()


@pytest.mark.slow
def test_the_number_of_epochs_that_finetune_names_is_enough(alike, capsys):
    """With one less the warning is printed again, with that many it is not."""
    arguments = ["finetune", "--data", str(alike / "set"), "--dense", "--device", "cpu", "--image-size", "8"]

    def tune(epochs):
        assert main([*arguments, "--epochs", str(epochs), "--out", str(alike / f"epochs-{epochs}")]) == 0
        return capsys.readouterr().out

    few = r"warning: 2 steps are few; training usually needs 50 or more: use --epochs (\d+) or more"
    (enough,) = re.findall(few, tune(1))
    assert "steps are few" in tune(int(enough) - 1)
    assert "steps are few" not in tune(int(enough))


def test_a_good_model_is_not_warned_of(alike, capsys):
    """Fifty steps on digits tell more than the most frequent digit, and are not few."""
    out = alike / "digits"
    arguments = ["train", "digits_dense", "--steps", "50", "--batch-size", "28", "--device", "cpu", "--out", str(out)]
    assert main(arguments) == 0
    assert "warning" not in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["weakness"] is None
