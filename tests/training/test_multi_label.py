"""pytest tests/training/test_multi_label.py: images that may show several things at once."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from vismoe.cli import main
from vismoe.data import ImageSet, open_data
from vismoe.inference import evaluate, predict
from vismoe.tasks import MultiLabel
from vismoe.training import fit

from ..inference.test_evaluation import Table
from .tiny import tiny

COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with a band of each colour that is on them, two thirds of those with several; who took them."""
    place, random = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    lines = ["file_name,label,who"]
    for number in range(64):
        pixels = random.integers(0, 60, (9, 9, 3), np.uint8)
        shown = [index for index in range(3) if number >> index & 1]
        for index in shown:
            pixels[3 * index : 3 * index + 3, :, 2 - index] = 255
        Image.fromarray(pixels).save(place / f"{number}.png")
        lines.append(f"{number}.png,{'|'.join(COLOURS[index] for index in shown)},{('ann', 'bob')[number % 2]}")
    (place / "metadata.csv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, sketched):
    recipe = tiny(
        data=str(folder), steps=50, batch_size=8, learning_rate=3e-3, warmup_steps=5, degrees=0.0, translate=0.0
    )
    return fit(recipe, tmp_path_factory.mktemp("runs") / "bands")


def test_bands_are_told_apart(run, folder):
    """It learns: precision far above the 0.5 of a guess; the run says what it is judged by, the model what it is."""
    assert run.summary["mean_average_precision"] > 0.9
    assert "top1" not in run.summary
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["label_names"] == list(COLOURS)
    assert {path.name for path in run.path.glob("*.png")} == {"curves.png", "routing.png"}


def test_probabilities_are_each_class_s_own(run, folder):
    """They need not sum to one: of an image with all three bands each is likely."""
    (found,) = predict(run.load_model(), folder / "63.png")
    assert {name for name, _ in found.classes} == set(COLOURS)
    assert all(probability > 0.5 for _, probability in found.classes)


def test_figures_are_scikit_learn_s():
    """Average precision of each class, exact matches and loss of four images, by an independent source."""
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    model = Table()
    found = evaluate(model, ImageSet(labels, lambda number: Image.new("L", (2, 2), number)))
    scores = model.logits.detach()
    expected = [average_precision_score(labels[:, k], scores[:, k]) for k in range(2)]
    assert found.per_class[:2] == pytest.approx(expected)
    assert np.isnan(found.per_class[2])  # it is on no image
    assert found.score == found.metrics["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert found.metrics["exact_match"] == ((scores > 0) == labels).all(1).float().mean()
    probabilities = scores.sigmoid().clamp(1e-12, 1 - 1e-12)
    by_hand = -(torch.where(labels, probabilities, 1 - probabilities)).log().mean()
    assert found.metrics["loss"] == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_loss_is_each_class_s_cross_entropy(folder, tmp_path, monkeypatch):
    """Mean over classes, with the share of smoothing spread over them; mixed labels are the mean of both images'."""
    seen = []
    plain = MultiLabel.loss

    def watched(task, logits, batch):
        loss = plain(task, logits, batch)
        seen.append((loss, logits, batch["target"]))
        return loss

    monkeypatch.setattr(MultiLabel, "loss", watched)
    fit(tiny(data=str(folder), steps=1, label_smoothing=0.1, mixup=0.5), tmp_path / "run")
    loss, logits, targets = seen[0]
    smooth = targets * 0.9 + 0.1 / 3
    by_hand = -(smooth * F.logsigmoid(logits) + (1 - smooth) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(loss, by_hand)
    assert ((targets > 0) & (targets < 1)).any()
    torch.testing.assert_close((targets + targets.flip(0)).remainder(1), torch.zeros_like(targets), atol=1e-5, rtol=0)


def test_eval_by_group(run, folder, capsys):
    """Figures of each photographer's held-out images, worst first, with Wilson's interval."""
    arguments = ["eval", str(run.path), "--data", str(folder), "--group", "who"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    held_out = open_data(str(folder), run.recipe.split_seed).val
    assert found["images"] == len(held_out)
    groups = {group["name"]: group for group in found["groups"]}
    assert {name: group["images"] for name, group in groups.items()} == Counter(held_out.columns["who"])
    accuracies = [group["accuracy"] for group in found["groups"]]
    assert accuracies == sorted(accuracies)
    right = sum(group["accuracy"] * group["images"] for group in groups.values())
    assert right / len(held_out) == pytest.approx(found["exact_match"])
    for group in groups.values():
        p, n, z = group["accuracy"], group["images"], 1.959964
        centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        expected = [(centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
        assert [group["low"], group["high"]] == pytest.approx(expected, abs=1e-6)
    assert main(arguments) == 0
    assert "accuracy by who, lowest first: " in capsys.readouterr().out
    assert main(["eval", str(run.path), "--data", str(folder), "--group", "whom"]) == 2
    assert "no such column in a metadata.csv; its columns are who" in capsys.readouterr().err


def test_one_label_is_not_several(run, tmp_path, capsys):
    """A set of one class an image is refused, not scored by another measure."""
    for name in COLOURS:
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), name).save(tmp_path / name / "x.png")
    assert main(["eval", str(run.path), "--data", str(tmp_path)]) == 2
    assert "trained on images with several classes each" in capsys.readouterr().err
