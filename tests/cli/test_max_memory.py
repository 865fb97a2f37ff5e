"""pytest tests/cli/test_max_memory.py: predict and eval of a network whose experts stay on disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vismoe
from vismoe.cli import main

PLENTY = ("--max-memory", "64GiB")


@pytest.fixture
def folder(tmp_path):
    """A model folder, with a head that is not zero."""
    torch.manual_seed(0)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, in_chans=1)
    torch.nn.init.normal_(model.head.weight)
    return str(vismoe.save(model, tmp_path / "m", label_names=[str(number) for number in range(10)]))


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def printed(capsys, *arguments):
    """What a command prints as JSON, and its notes."""
    assert main([*arguments]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predict(dtype, folder, image, capsys):
    """The same classes and probabilities as in memory; a note says how much was read."""
    if dtype == "bfloat16" and vismoe.kernels_in_use() not in ("AMX", "AVX512-BF16"):
        pytest.skip("no kernels for bfloat16")
    options = ("--format", "json", "--device", "cpu", "--dtype", dtype)
    [expected], _ = printed(capsys, "predict", folder, image, *options)
    [given], notes = printed(capsys, "predict", folder, image, *options, *PLENTY)
    rounding = 1e-5 if dtype == "float32" else 0.1
    assert given["classes"][0]["name"] == expected["classes"][0]["name"]
    assert given["classes"][0]["probability"] == pytest.approx(expected["classes"][0]["probability"], rel=rounding)
    assert "read from disk" in notes


def test_eval(folder, capsys):
    """The same metrics and load as in memory."""
    expected, _ = printed(capsys, "eval", folder, "--data", "digits", "--json", "--device", "cpu")
    given, notes = printed(capsys, "eval", folder, "--data", "digits", "--json", "--device", "cpu", *PLENTY)
    for name in ("images", "top1", "load"):
        assert given[name] == expected[name]
    assert given["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert "read from disk" in notes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-memory", "8 gigs"), "max_memory='8 gigs': accepted are a number of bytes"),
        (("--max-memory", "20MB"), "max_memory=19.07 MiB: this process has"),
    ],
)
def test_limits_that_are_refused(arguments, says, folder, image, capsys):
    """Code 2, and one line that says what is accepted or needed."""
    for command in (["predict", folder, image], ["eval", folder, "--data", "digits"]):
        assert main([*command, *arguments]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_preset_is_refused(image, capsys):
    """It has no folder in which experts could stay."""
    assert main(["predict", "vmoe_pico_patch2_8_every2_e8", image, *PLENTY]) == 2
    assert "max_memory is for run folders" in capsys.readouterr().err
