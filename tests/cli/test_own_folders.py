"""pytest tests/cli/test_own_folders.py: what the command says of a person's own folder."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import vismoe
from vismoe.adapt import finetune, run_splits
from vismoe.adapt.run_splits import split_of_files
from vismoe.cli import main
from vismoe.recipes import find_recipe
from vismoe.training import Run

TINY = ("--steps", "2", "--batch-size", "4", "--device", "cpu")


def lay(root, *folders, images=4, size=(9, 8)):
    """Folders of so many images each, no two of them copies."""
    random = np.random.default_rng(0)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(0, 255, (size[1], size[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{number}.png")


@pytest.fixture
def three(tmp_path):
    """A set with three splits of two classes."""
    lay(tmp_path / "set", *(f"{split}/{name}" for split in ("Train", "val", "test") for name in ("cat", "dog")))
    return tmp_path / "set"


def test_train_says_classes_splits_and_size(three, tmp_path, capsys):
    """Before the first step a user sees whether the folder was understood: its classes with their images, its three
    splits, the size that is trained at; at the end the score of the test split, by which nothing was chosen. `eval` of
    the run is of that split, and of no image that was trained on or chosen by."""
    out = tmp_path / "run"
    assert main(["train", "digits", "--data", str(three), "--out", str(out), *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 classes: cat 4, dog 4"
    assert lines[1] == "8 training images, 8 validation images, 8 test images; trained at 8 × 8 pixels"
    test = Run(out).summary["test"]
    assert test["images"] == 8
    assert f"; test split, 8 images: {test['top1']:.4f}; everything" in "\n".join(lines)
    assert main(["eval", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["part"], figures["images"], figures["top1"]) == ("test", 8, test["top1"])
    assert all(file.startswith("test/") for file in run_splits(Run(out)).val.files)
    splits = split_of_files(Run(out))
    assert len(splits) == 24
    assert all({"Train": "train", "val": "validation", "test": "test"}[f.split("/")[0]] == s for f, s in splits.items())


def test_files_that_are_left_out_are_counted_against_the_whole_set(three, tmp_path, capsys):
    """Of 24 files, not of the 16 outside the test split; where only a part is known, their number alone."""
    (three / "test" / "cat" / "0.png").write_text("no image")
    arguments = ["--data", str(three), "--max-unreadable", "0.2", "--device", "cpu"]
    assert main(["train", "digits", *arguments, "--out", str(tmp_path / "run"), *TINY]) == 0
    assert "vismoe: 1 of 24 files cannot be used and are left out" in capsys.readouterr().err
    small = ["--epochs", "1", "--image-size", "8", "--out", str(tmp_path / "tuned")]
    assert main(["finetune", *arguments, *small]) == 0
    assert "vismoe: 1 file cannot be used and is left out" in capsys.readouterr().err


def test_train_shortens_many_classes(tmp_path, capsys):
    """A folder of many classes does not fill the screen."""
    lay(tmp_path / "set", *(f"class {number:02}" for number in range(14)), images=2)
    assert main(["train", "digits", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run"), *TINY]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("class 09 1 and 4 more")


def test_train_says_notes_and_reasons(tmp_path, capsys):
    """What is not read, and why files are left out, stands on stderr with counts, once."""
    lay(tmp_path / "set", "cat", "dog", "cat/@eaDir", images=8)
    for name in ("a", "b"):
        (tmp_path / "set" / "cat" / f"{name}.heic").write_bytes(b"phone")
    options = ["--max-unreadable", "0.2", "--out", str(tmp_path / "run"), *TINY]
    assert main(["train", "digits", "--data", str(tmp_path / "set"), *options]) == 0
    left_out, note = capsys.readouterr().err.splitlines()
    assert left_out.startswith("vismoe: 2 of 18 files cannot be used and are left out: ")
    assert left_out.endswith("(2 × HEIC is not read: convert it to JPEG)")
    assert note == "vismoe: note: hidden folders and system folders are not read: cat/@eaDir/"


def test_photographs_that_are_shrunk_to_digits_are_said(tmp_path, capsys):
    """`train digits --data FOLDER` works for whoever uses it, but says that photographs become 8 × 8, and what to use
    instead; at the size of the recipe for folders nothing is said."""
    lay(tmp_path / "set", "cat", "dog", size=(64, 48))
    assert main(["train", "digits", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run"), *TINY]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert "images of about 64 × 48 pixels are resized to 8 × 8" in note
    assert "vismoe train images" in note
    assert "_64_" in find_recipe("images").model


@pytest.mark.parametrize("options", [(), ("--max-level", "4095")])
def test_images_of_12_bits_are_said(tmp_path, capsys, options):
    """A training on nearly black images is told so, with the option that helps; with it nothing is said."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            levels = random.integers(0, 4096, (8, 8)).astype(np.uint16)
            Image.fromarray(levels).save(tmp_path / "set" / name / f"{number}.png")
    out = str(tmp_path / "run")
    assert main(["train", "digits", "--data", str(tmp_path / "set"), "--out", out, *TINY, *options]) == 0
    assert main(["eval", out]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "evaluating on 2 images" not in line]
    assert len(notes) == (0 if options else 2)
    assert all("they seem to have 12 bits" in note and "--max-level 4095" in note for note in notes)


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """A sparse network of two classes, and a folder of theirs: 12-bit images, a system's folder, and a text file."""
    root, random = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "set" / name).mkdir(parents=True)
        for number in range(8):
            levels = random.integers(0, 4096, (8, 8)).astype(np.uint16)
            Image.fromarray(levels).save(root / "set" / name / f"{number}.png")
    (root / "set" / "cat" / "@eaDir").mkdir()
    (root / "set" / "dog" / "notes.txt").write_text("bitten")
    vismoe.save(vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=2), root / "model", ["cat", "dog"])
    return root


@pytest.mark.parametrize("verb", ["eval", "fewshot", "embed", "embed images", "densify"])
def test_every_verb_says_what_of_a_folder_is_not_read(odd_folder, tmp_path, capsys, verb):
    """Who gives a folder to any verb hears of what is skipped in it, and of images that are nearly black."""
    model, folder = str(odd_folder / "model"), str(odd_folder / "set")
    options = {
        "eval": [model, "--data", folder],
        "fewshot": [model, "--data", folder, "--shots", "1", "--seeds", "1"],
        "embed": [model, "--data", folder, "--out", str(tmp_path / "e.npy")],
        "embed images": [model, folder, "--out", str(tmp_path / "e.npy")],
        "densify": [model, str(tmp_path / "dense"), "--data", folder],
    }[verb]
    assert main([verb.split()[0], *options]) == 0
    errors = capsys.readouterr().err
    for text in (
        "hidden folders and system folders are not read: cat/@eaDir/\n",
        "files that are not images are not read: 1 .txt\n",
        "16-bit images have no level above 4,0",
    ):
        assert errors.count(text) == 1, errors
    assert errors.count("vismoe: note: ") == 3 + (verb == "eval")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A set of three classes, and a run of finetune on it."""
    root = tmp_path_factory.mktemp("adapted")
    lay(root / "set", "ant", "bee", "cow", images=12)
    finetune(str(root / "set"), root / "run", device="cpu", epochs=1, image_size=8)
    return root


def test_training_images_in_another_folder_are_said(adapted, tmp_path, capsys):
    """A copy of a run's folder has its training images, by their names; other images have not. Classes without images
    are named."""
    run = str(adapted / "run")
    shutil.copytree(adapted / "set", tmp_path / "copy")
    sides = split_of_files(Run(adapted / "run"))
    trained = sum(side != "test" for side in sides.values())
    assert main(["eval", run, "--data", str(tmp_path / "copy")]) == 0
    assert f"note: {trained} of these 36 images have names of training images of {run}" in capsys.readouterr().err
    assert main(["eval", run, "--data", str(adapted / "set")]) == 0
    assert "note" not in capsys.readouterr().err
    lay(tmp_path / "other", "ant", "bee", images=2)
    for file in (tmp_path / "other").rglob("*.png"):
        file.rename(file.with_name(f"new-{file.name}"))
    assert main(["eval", run, "--data", str(tmp_path / "other")]) == 0
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "note" in line)
    assert "note: no images of cow" in note


def test_eval_shows_what_means_something(adapted, capsys):
    """No top-5 accuracy of three classes, which is 1; of several options an error names the wrong one."""
    run = str(adapted / "run")
    assert main(["eval", run]) == 0
    assert "top-5" not in capsys.readouterr().out
    assert main(["eval", run, "--batch-size", "0"]) == 2
    assert "batch_size=0: accepted are at least 1\n" in capsys.readouterr().err


def test_the_recipe_for_folders_needs_a_folder(capsys):
    """`vismoe train images` alone says what is missing."""
    assert main(["train", "images", *TINY]) == 2
    assert "data 'FOLDER': no such folder" in capsys.readouterr().err


def test_the_recipe_for_folders_trains(tmp_path, capsys):
    """It trains on a folder at 64 × 64, and its run is evaluated like any other."""
    lay(tmp_path / "set", "cat", "dog", size=(70, 90))
    out = str(tmp_path / "run")
    assert main(["train", "images", "--data", str(tmp_path / "set"), "--out", out, *TINY]) == 0
    assert "trained at 64 × 64 pixels" in capsys.readouterr().out
    assert main(["eval", out]) == 0


def test_names_of_bytes_make_valid_json(tmp_path, capsys):
    """A file name that is not UTF-8 is a readable one in what `train` and `predict` write: every strict parser reads
    their JSON, as UTF-8 without lone surrogates."""
    lay(tmp_path / "set", "cat", "dog", images=8)
    cats = os.fsencode(tmp_path / "set" / "cat")
    os.rename(cats + b"/0.png", cats + b"/gr\xfcn.png")
    with open(cats + b"/\xff\xfe.png", "w") as file:
        file.write("no image")
    out = tmp_path / "run"
    assert main(["train", "digits", "--data", str(tmp_path / "set"), "--out", str(out), *TINY]) == 0
    (entry,) = json.loads((out / "data.json").read_bytes())["unreadable"]
    assert entry["file"] == "cat/\\xff\\xfe.png"
    entry["file"].encode()
    capsys.readouterr()
    assert main(["predict", str(out), str(tmp_path / "set" / "cat"), "--format", "json"]) == 0
    printed = capsys.readouterr()
    answers = json.loads(printed.out.encode())
    assert os.fsencode(tmp_path).decode() + "/set/cat/gr\\xfcn.png" in [answer["image"] for answer in answers]
    assert "xff" in printed.err
    assert main(["train", "digits", "--data", str(tmp_path / "set"), "--out", str(out), "--resume", "auto", *TINY]) == 0
