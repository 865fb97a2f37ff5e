"""pytest tests/cli/test_features.py: `vismoe embed` and `vismoe fewshot`."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vismoe
from vismoe.cli import main
from vismoe.data import open_data
from vismoe.features import few_shot

PRESET = "vmoe_pico_patch2_8_dense"


@pytest.fixture
def shades(tmp_path):
    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (9, 9), grey + number).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_embed_a_set(shades, tmp_path, capsys):
    """A row for each image that can be read, with file and class; the others are named."""
    (shades / "light" / "letter.png").write_text("no image")
    assert main(["embed", PRESET, "--data", str(shades), "--out", str(tmp_path / "e.npy")]) == 0
    out, errors = capsys.readouterr()
    assert out.startswith("24 images, 64 features each: ")
    assert "'light/letter.png' is left out: not an image of a known format" in errors
    assert np.load(tmp_path / "e.npy").shape == (24, 64)
    rows = table(tmp_path / "e.csv")
    assert len(rows) == 24
    assert rows[0] == ("dark/0.png", "dark")
    assert rows[-1] == ("light/9.png", "light")


def test_embed_files(shades, tmp_path, capsys):
    """Files and folders give what the set gives; both views are another thing."""
    (shades / "dark" / "letter.png").write_text("no image")
    where = [str(shades / "dark"), str(shades / "light" / "1.png")]
    for name, more in (("e", []), ("set", ["--data", str(shades)]), ("views", ["--views", "plain", "mirrored"])):
        chosen = more if name == "set" else [*where, *more]
        assert main(["embed", PRESET, *chosen, "--out", str(tmp_path / f"{name}.npy"), "--batch-size", "5"]) == 0
    found = dict(zip(table(tmp_path / "e.csv"), np.load(tmp_path / "e.npy"), strict=True))
    assert len(found) == 13
    assert f"'{shades}/dark/letter.png' is left out" in capsys.readouterr().err
    same = dict(zip(table(tmp_path / "set.csv"), np.load(tmp_path / "set.npy"), strict=True))
    vector = found[str(shades / "dark" / "3.png"), ""]
    np.testing.assert_allclose(vector, same["dark/3.png", "dark"], atol=1e-5)
    assert table(tmp_path / "views.csv") == table(tmp_path / "e.csv")


def test_embed_at_another_size(shades, tmp_path, capsys):
    """`--image-size` prepares images, and resizes position embeddings, for that size; no other than patches tile."""
    out = tmp_path / "e.npy"
    assert main(["embed", PRESET, str(shades), "--image-size", "12", "--out", str(out)]) == 0
    torch.manual_seed(0)
    model = vismoe.create_model(PRESET, num_classes=1000).eval()
    model.set_input_size(img_size=12)
    # One grey all over, whatever its size: its pixel in [-1, 1].
    pixels = torch.full((1, 3, 12, 12), 40 / 127.5 - 1)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)[0]
    found = dict(zip(table(tmp_path / "e.csv"), np.load(out), strict=True))
    np.testing.assert_allclose(found[str(shades / "dark" / "0.png"), ""], expected, atol=1e-5)
    capsys.readouterr()
    assert main(["fewshot", PRESET, "--data", str(shades), "--shots", "1", "--image-size", "13"]) == 2
    assert f"image_size=13: for {PRESET} it must be a multiple of the patch size 2" in capsys.readouterr().err


def test_parts_have_a_column(tmp_path, shades, capsys):
    """Of a set of parts, and of a run's own, a row says which part its image was of."""
    assert main(["embed", PRESET, "--data", "digits", "--out", str(tmp_path / "digits.npy")]) == 0
    parts = [part for *_, part in table(tmp_path / "digits.csv")]
    assert parts == ["train"] * 1347 + ["held-out"] * 450
    data, run, tuned = str(shades), tmp_path / "run", tmp_path / "tuned"
    assert main(["train", "digits", "--data", data, "--steps", "1", "--batch-size", "8", "--out", str(run)]) == 0
    small = ["--epochs", "1", "--image-size", "8", "--device", "cpu"]
    assert main(["finetune", "--data", data, *small, "--out", str(tuned)]) == 0
    told = capsys.readouterr().out
    words = ("a small network is trained from scratch", "the network is dense; --sparse", "split: ")
    assert all(each in told for each in words)
    Image.new("L", (9, 9), 90).save(shades / "dark" / "later.png")
    assert main(["embed", str(tuned), "--data", data, "--out", str(tmp_path / "tuned.npy")]) == 0
    split = json.loads((tuned / "split.json").read_text())["files"]
    assert {file: part for file, _, part in table(tmp_path / "tuned.csv")} == split | {"dark/later.png": ""}
    (shades / "dark" / "later.png").unlink()
    assert main(["embed", str(run), "--data", data, "--out", str(tmp_path / "run.npy")]) == 0
    held_out = {file for file, _, part in table(tmp_path / "run.csv") if part == "held-out"}
    assert held_out == set(open_data(data, 0).val.files)
    capsys.readouterr()
    assert main(["embed", PRESET, "--data", "digits", "--out", str(tmp_path / "digits.npy")]) == 2
    assert f"{tmp_path}/digits.csv and {tmp_path}/digits.npy exist: " in capsys.readouterr().err


def test_long_waits_are_told(shades, tmp_path, capsys, monkeypatch):
    """Where it takes longer than a few seconds, a line on stderr says how far it is."""
    monkeypatch.setattr("vismoe.cli.shared.progress.QUIET", 0.0)
    data = ["--data", str(shades)]
    assert main(["embed", PRESET, *data, "--out", str(tmp_path / "e.npy"), "--batch-size", "16"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("features: ")]
    assert [line.split(" images")[0] for line in lines] == [
        "features: 16 of 24",
        "features: 24 of 24",
    ]
    assert main(["fewshot", PRESET, *data, "--shots", "1", "--seeds", "1"]) == 0
    assert "features: 24 of 24 images, 0:00 left" in capsys.readouterr().err


def test_fewshot(shades, capsys):
    """Table and JSON hold the figures of `few_shot`, with mean and deviation; too many shots are left out aloud."""
    arguments = ["fewshot", PRESET, "--data", str(shades), "--shots", "5,1,200", "--seeds", "2"]
    assert main([*arguments, "--json"]) == 0
    out, errors = capsys.readouterr()
    assert "200 shots are left out" in errors
    found = json.loads(out)
    torch.manual_seed(0)
    expected = few_shot(vismoe.create_model(PRESET), open_data(str(shades), 0), (1, 5), 2)
    assert (found["images"], found["seeds"]) == (6, 2)
    for row, each in zip(found["rows"], expected, strict=True):
        assert (row["shots"], row["l2"]) == (each.shots, each.l2)
        assert row["closed_form"]["each"] == each.closed_form
        assert row["neighbours"]["mean"] == pytest.approx(sum(each.neighbours) / 2)
        deviation = abs(each.neighbours[0] - each.neighbours[1]) / 2**0.5
        assert row["neighbours"]["standard_deviation"] == pytest.approx(deviation)
    assert main(arguments) == 0
    assert f"{found['rows'][1]['closed_form']['mean']:.4f} ± " in capsys.readouterr().out


def test_fewshot_by_the_reference_s_protocol(shades, capsys):
    """`--protocol reference` is that of `few_shot`, which more shots than a class has images are no matter to."""
    arguments = ["fewshot", PRESET, "--data", str(shades), "--shots", "5,200", "--seeds", "1"]
    assert main([*arguments, "--protocol", "reference", "--json"]) == 0
    out, errors = capsys.readouterr()
    found = json.loads(out)
    torch.manual_seed(0)
    model = vismoe.create_model(PRESET)
    expected = few_shot(model, open_data(str(shades), 0), (5, 200), 1, protocol="reference")
    assert found["protocol"] == "reference"
    assert "left out" not in errors
    rows = [(row["shots"], row["l2"], row["closed_form"]["each"]) for row in found["rows"]]
    assert rows == [(each.shots, each.l2, each.closed_form) for each in expected]


def test_bad_input(shades, tmp_path, capsys, monkeypatch):
    """One line on stderr, exit code 2, nothing written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("vismoe.features.embeddings.find_spec", lambda name: None)
    (tmp_path / "there.npy").write_text("mine")
    (tmp_path / "letter.png").write_text("no image")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for number in range(8):
        Image.new("L", (9, 9), number).save(tmp_path / "one" / "cat" / f"{number}.png")
    out = ["--out", str(tmp_path / "e.npy")]
    embed, fewshot = ["embed", PRESET], ["fewshot", PRESET, "--data", str(shades)]
    for arguments, message in (
        ([*embed, *out], "name either images or a data set"),
        ([*embed, "x.png", "--data", "digits", *out], "name either images or a data set"),
        ([*embed, str(tmp_path / "gone"), *out], "no such image or folder"),
        ([*embed, str(tmp_path / "letter.png"), *out], "no readable image"),
        ([*embed, "--data", "digits", "--out", str(tmp_path / "there.npy")], "there.npy exists"),
        ([*embed, "--data", "digits", "--out", str(tmp_path / "e.parquet")], "pip install 'vismoe[embed]'"),
        ([*embed, "--data", "digits", "--out", str(tmp_path / "e.json")], "accepted are .npy and .parquet"),
        ([*embed, "--data", "digits", *out, "--batch-size", "0"], "batch_size=0"),
        ([*fewshot, "--shots", "one"], "shots='one'"),
        ([*fewshot, "--shots", "0"], "each must be at least 1"),
        ([*fewshot, "--shots", "9"], "9 shots, but dark has 9 training images"),
        ([*fewshot, "--seeds", "0"], "seeds=0"),
        (["fewshot", PRESET, "--data", str(tmp_path / "one")], "one has one class, cat: few-shot accuracy needs"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 2, arguments
        errors = [line for line in capsys.readouterr().err.splitlines() if "note:" not in line]
        assert len(errors) == 1, (arguments, errors)
        assert message in errors[0]
        assert sorted(tmp_path.rglob("*")) == before
