"""The command: help, verbs end to end, and bad input: one line on stderr, exit code 2, nothing half-written."""

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest
from PIL import Image

import vismoe
from vismoe.cli import VERBS, main

TINY = ["--steps", "3", "--batch-size", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", *TINY, "--out", str(path)]) == 0
    return path


@pytest.fixture
def pictures(tmp_path):
    for name in ("b", "a picture, with ✓"):
        Image.new("RGB", (12, 9), "navy").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb, capsys):
    """Every verb explains itself, with an example, and exits with 0."""
    arguments = [verb, "digits", "--help"] if verb == "train" else [verb, "--help"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"Example: vismoe {verb}" in " ".join(text.split())
    assert "default:" in text


def test_usage_version_and_module(capsys):
    """`vismoe`, `vismoe --version` and `python -m vismoe`."""
    assert main([]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)
    done = subprocess.run([sys.executable, "-m", "vismoe", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vismoe {vismoe.__version__}\n"


def test_models(capsys):
    """The table and its JSON name the same presets with the same figures."""
    assert main(["models", "vmoe_pico*8_*"]) == 0
    table = capsys.readouterr().out
    assert main(["models", "vmoe_pico*8_*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == vismoe.list_models("vmoe_pico*8_*")
    for row in rows:
        assert row["name"] in table
        assert f"{row['parameters'] / 1e6:,.2f}" in table


def test_eval(run, capsys):
    """`eval` of the run, of its model folder and of a preset: top1 in 0…1; the run's is what training wrote."""
    found = []
    for model in (run, run / "model", "vmoe_pico_patch2_8_dense"):
        assert main(["eval", str(model), "--data", "digits", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert 0 <= found[-1]["top1"] <= 1
        assert found[-1]["images"] == 450
    expected = json.loads((run / "summary.json").read_text())["top1"]
    assert found[0]["top1"] == pytest.approx(expected) == found[1]["top1"]
    assert main(["eval", str(run), "--json"]) == 0  # a run's own set is the default
    assert json.loads(capsys.readouterr().out)["top1"] == found[0]["top1"]


def test_predict_formats(run, pictures, capsys):
    """One record a picture, files and folders, in table, JSON and CSV."""
    images = [str(pictures), str(pictures / "b.png")]
    assert main(["predict", str(run), *images, "--topk", "2", "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["image"].rpartition("/")[2] for record in records] == ["a picture, with ✓.png", "b.png", "b.png"]
    assert all(len(record["classes"]) == 2 for record in records)
    assert main(["predict", str(run), *images, "--topk", "2", "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["image", "class1", "probability1", "class2", "probability2"]
    assert [row[0] for row in rows[1:]] == [record["image"] for record in records]
    assert main(["predict", str(run), *images]) == 0
    assert "b.png" in capsys.readouterr().out


def test_predict_leaves_out_what_cannot_be_read(run, pictures, capsys):
    """Damaged files and pictures of other kinds in a folder are named on stderr; with nothing left it is an error."""
    (pictures / "broken.png").write_text("no picture")
    (pictures / "phone.HEIC").write_bytes(b"ftypheic")
    assert main(["predict", str(run), str(pictures), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 2
    assert err.splitlines() == [
        "vismoe: note: 'phone.HEIC' is left out: HEIC is not read: convert it to JPEG",
        "vismoe: note: 'broken.png' is left out: no image of a known kind",
    ]
    for path in pictures.glob("*[a✓].png"):
        path.unlink()
    (pictures / "b.png").unlink()
    assert main(["predict", str(run), str(pictures)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "vismoe: error: none of the images can be read"


def test_upcycle_and_densify(tmp_path, capsys):
    """A dense run made sparse, whole and as differences, evaluates as its parent does; and back, with what it costs."""
    dense, sparse = str(tmp_path / "dense"), str(tmp_path / "sparse")
    assert main(["train", "digits_dense", *TINY, "--out", dense]) == 0
    assert main(["upcycle", dense, sparse, "--num-experts", "4", "--layers", "1,3"]) == 0
    out = capsys.readouterr().out
    difference = out.partition("largest difference of their outputs on 4 random images: ")[2].partition(";")[0]
    assert float(difference) < 1e-5
    small = ["--num-experts", "4", "--experts", "low-rank", "--only-differences"]
    assert main(["upcycle", dense, str(tmp_path / "small"), *small]) == 0
    capsys.readouterr()
    figures = []
    for model in (dense, sparse, str(tmp_path / "small")):
        assert main(["eval", model, "--data", "digits", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["loss"])
    assert figures == pytest.approx([figures[0]] * 3, abs=1e-5)
    assert main(["densify", sparse, str(tmp_path / "back"), "--data", "digits", "--images", "40"]) == 0
    before, after = (line for line in capsys.readouterr().out.splitlines() if " images, " in line)
    assert before.split(",")[:2] == [part.replace("after", "before") for part in after.split(",")[:2]]
    assert main(["densify", sparse, str(tmp_path / "fewer"), "--data", "digits", "--num-experts", "2"]) == 0
    assert vismoe.load(tmp_path / "fewer").moe.num_experts == 2
    for arguments in (["upcycle", dense, sparse], ["densify", sparse, str(tmp_path / "back"), "--data", "digits"]):
        assert main(arguments) == 2
    assert capsys.readouterr().err.count("exists: choose another one") == 2


def test_what_is_printed_comes_before_what_is_written(run, tmp_path, capsys, monkeypatch):
    """Where the cost cannot be told, no folder is left behind."""

    def fails(*arguments):
        raise ValueError("no cost")

    vismoe.save(vismoe.create_model("vmoe_pico_patch2_8_dense"), tmp_path / "dense")
    out = tmp_path / "out"
    for verb, source, more in (("upcycle", tmp_path / "dense", []), ("densify", run, ["--data", "digits"])):
        monkeypatch.setattr(f"vismoe.cli.{verb}.cost", fails)
        assert main([verb, str(source), str(out), *more]) == 2
        assert "no cost" in capsys.readouterr().err
        assert not out.exists()


def test_demo(tmp_path, capsys):
    """The demo trains both twins, shows table, picture's path and what to type next; a second one begins afresh."""
    out = tmp_path / "demo"
    assert main(["demo", "--steps", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("accuracy", "parameters in all", "active per token", "multiplications", "images/s")
    )
    assert "3-nearest-neighbours on the same split: 0.98" in text
    assert f"{out}/routing.png" in text
    assert f"vismoe predict {out}" in text
    for folder in (out, out / "dense"):
        assert {"recipe.json", "environment.json", "metrics.jsonl", "curves.png", "confusion.png", "model"} <= {
            path.name for path in folder.iterdir()
        }
    assert main(["demo", "--steps", "2", "--out", str(out)]) == 0
    assert "begun afresh" in capsys.readouterr().out


def test_demo_removes_nothing_but_a_demo(run, tmp_path, capsys):
    """Another run, somebody's files and a demo asked for with bad options: all is left as it was."""
    (tmp_path / "cooking").mkdir()
    (tmp_path / "cooking" / "recipe.json").write_text('{"name": "pancakes"}')
    before = sorted(run.rglob("*"))
    for folder in (run, tmp_path / "cooking"):
        assert main(["demo", "--steps", "2", "--out", str(folder)]) == 2
    assert sorted(run.rglob("*")) == before
    assert (tmp_path / "cooking" / "recipe.json").exists()
    assert main(["train", "digits", *TINY, "--name", "demo", "--out", str(tmp_path / "demo")]) == 0
    assert main(["demo", "--steps", "0", "--out", str(tmp_path / "demo")]) == 2
    assert (tmp_path / "demo" / "model").is_dir()
    assert "steps=0" in capsys.readouterr().err


def test_output_that_nobody_reads_is_no_error(run):
    """`vismoe … | head` ends without a word."""
    line = f"{sys.executable} -m vismoe models --json 'vmoe_pico*' | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_training_that_nobody_watches_ends_all_the_same(tmp_path):
    """`vismoe train … | head -n 1`: the run is whole."""
    words = [sys.executable, "-m", "vismoe", "train", "digits", "--steps", "40", "--batch-size", "8", "--device", "cpu"]
    line = shlex.join([*words, "--out", str(tmp_path / "run")]) + " | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    assert (tmp_path / "run" / "summary.json").is_file()


def bad_inputs(run, folder):
    """Arguments and what the line must say."""
    (folder / "empty" / "cats").mkdir(parents=True)
    (folder / "weights.pt").write_bytes(b"\x80\x04.")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (folder / "text.png").write_text("no picture")
    (folder / "begun").mkdir()
    (folder / "begun" / "recipe.json").write_bytes((run / "recipe.json").read_bytes())
    (folder / "other" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "other" / "cat" / "1.png")
    out = ["--out", str(folder / "out")]
    return [
        (["fly"], "unknown verb 'fly'"),
        (["train", "digitz"], "did you mean digits"),
        (
            ["train", "digits", "--model", "vmoe_pico_patch2_every2_e8", *out],
            "did you mean vmoe_pico_patch2_8_every2_e8",
        ),
        (["train", "digits", "--experts-per-token", "9", *out], "k=9 experts per token"),
        (["train", "digits", "--steps", "0", *out], "steps=0"),
        (["train", "digits", "--device", "tpu", *out], "device 'tpu'"),
        (["train", "digits", "--image-size", "1000000", *out], "image_size=1000000"),
        (["train", "digits", *TINY, "--out", str(run)], "--resume auto goes on with it"),
        (["eval", "vmoe_pico_patch2_8_dense"], "on which set?"),
        (["eval", str(folder / "begun")], "has no model yet"),
        (["eval", str(folder / "nothing"), "--data", "digits"], "no such run or model folder"),
        (["eval", str(folder / "broken"), "--data", "digits"], "not readable JSON"),
        (["eval", str(folder / "weights.pt"), "--data", "digits"], "pickled"),
        (["eval", str(run), "--data", str(folder / "empty")], "no images in the class folders cats"),
        (["eval", str(run), "--data", str(folder / "other")], "classes"),
        (["eval", "vmoe_pico_patch2_8_dens", "--data", "digits"], "did you mean vmoe_pico_patch2_8_dense"),
        (["predict", str(run), str(folder / "text.png")], "cannot be read as an image"),
        (["predict", str(run), str(folder / "gone.png")], "no such image"),
        (["predict", str(run), str(folder / "text.png"), "--batch-size", "-1"], "batch_size=-1"),
        (["predict", str(run), ""], "which images?"),
        (["eval", str(run), "--data", "digits", "--device", "cpu:7"], "device 'cpu:7' is not here"),
        (["eval", str(run), "--data", "digits", "--batch-size", "0"], "batch_size=0"),
        (["models", "nothing*"], "no preset matches"),
        (["upcycle", str(run), *out[1:], "--layers", "1,,3"], "layers='1,,3': expected last-N, every-N, or numbers"),
        (["upcycle", str(run), *out[1:], "--layers", "1,a"], "layers='1,a': expected last-N"),
        (["upcycle", str(run), *out[1:], "--perturb", "nan"], "perturb=nan"),
        (["upcycle", str(run), *out[1:], "--block-list", "trunk"], "block_list='trunk': there is no such list"),
        (["densify", str(run), *out[1:], "--data", "digits", "--max-unreadable", "nan"], "max_unreadable=nan"),
    ]


def test_bad_input(run, tmp_path, capsys):
    """Exit code 2, exactly one line on stderr that says what was wrong, nothing written."""
    before = sorted(run.rglob("*"))
    for arguments, message in bad_inputs(run, tmp_path):
        assert main(arguments) == 2, arguments
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1, (arguments, errors)
        assert message in errors[0]
        assert not (tmp_path / "out").exists()
    assert sorted(run.rglob("*")) == before


def test_resume(tmp_path, capsys):
    """--resume auto goes on where there is a run and begins where there is none; another recipe is refused."""
    arguments = [
        "train",
        "digits",
        *TINY,
        "--checkpoint-every",
        "1",
        "--out",
        str(tmp_path / "run"),
        "--resume",
        "auto",
    ]
    assert main(arguments) == main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--learning-rate", "0.5"]) == 2
    assert "was begun with another recipe (learning_rate=0.002 there, 0.5 here)" in capsys.readouterr().err


def test_divergence_has_its_own_code(tmp_path, capsys):
    """A loss that is no number any more ends the run with exit code 3 and one line."""
    arguments = [
        "train",
        "digits",
        "--steps",
        "20",
        "--batch-size",
        "8",
        "--learning-rate",
        "1e30",
        "--warmup-steps",
        "0",
    ]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 3
    assert "try a smaller learning rate" in capsys.readouterr().err


def test_usage_errors_have_the_same_code(capsys):
    """Unknown options and values of another type end with exit code 2 too."""
    for arguments in (["train", "digits", "--stepz", "3"], ["eval", "--batch-size", "many"], ["predict"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err


def test_names_are_text(run, tmp_path, capsys):
    """Square brackets in file names are no markup."""
    Image.new("L", (8, 8)).save(tmp_path / "[red]x[[.png")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    assert "[red]x[[.png" in capsys.readouterr().out


def test_random_weights_are_said(capsys):
    """A preset has random weights, and the command says so on stderr."""
    assert main(["eval", "vmoe_pico_patch2_8_dense", "--data", "digits", "--json"]) == 0
    assert "its weights are random" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Dark and light pictures in class folders, in one piece, and a run on it."""
    place = tmp_path_factory.mktemp("shades")
    for name, grey in (("dark", 40), ("light", 200)):
        (place / "data" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (9, 9), grey + number).save(place / "data" / name / f"{number}.png")
    arguments = ["train", "digits", "--steps", "20", "--batch-size", "8", "--data", str(place / "data")]
    assert main([*arguments, "--out", str(place / "run")]) == 0
    return place


def test_a_folder_in_one_piece_is_evaluated_whole(shades, capsys):
    """All of it, and of the folder that the run was trained on also the part that it was not: the split's own."""
    arguments = ["eval", str(shades / "run"), "--data", str(shades / "data")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["unreadable"], found["unseen"]["images"]) == (24, 0, 6)
    assert found["unseen"]["accuracy"] == json.loads((shades / "run" / "summary.json").read_text())["top1"]
    assert main(arguments) == 0
    assert "of the 6 that were held out" in capsys.readouterr().out


def test_a_finetuned_run_is_evaluated_on_what_it_never_saw(shades, capsys):
    """Beside the figure of the whole folder stands that of the test part, which is the report's."""
    out, data = str(shades / "tuned"), str(shades / "data")
    assert main(["finetune", "--data", data, "--epochs", "1", "--out", out, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "a small network is trained from scratch" in said
    assert "pictures to train on" in said
    report = json.loads((shades / "tuned" / "report.json").read_text())
    assert main(["eval", out, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unseen"] == {"images": report["pictures"]["test"], "accuracy": report["test"]["top1"]}
    assert main(["finetune", "--data", data, "--sparse", "--dense"]) == 2
    assert main(["finetune", "--data", data, "--from", str(shades / "nothing")]) == 2
    assert main(["finetune", "--data", data, "--from", "timm:nothing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_classes_are_matched_by_name(shades, tmp_path, capsys):
    """A folder that lacks a class keeps the model's numbers; the class without images has no figure; one that the model
    does not know is named."""
    (tmp_path / "data" / "light").mkdir(parents=True)
    Image.new("L", (9, 9), 205).save(tmp_path / "data" / "light" / "x.png")
    arguments = ["eval", str(shades / "run"), "--data", str(tmp_path / "data")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["top1"]) == (1, 1.0)
    assert found["per_class"] == {"dark": None, "light": 1.0}
    assert "unseen" not in found
    (tmp_path / "data" / "light").rename(tmp_path / "data" / "bright")
    assert main(arguments) == 2
    assert "classes that the model does not know: bright" in capsys.readouterr().err


def test_eval_leaves_out_what_cannot_be_read(shades, tmp_path, capsys):
    """One of four is too many, unless accepted: then named on stderr, and counted."""
    (tmp_path / "light").mkdir()
    for number in range(3):
        Image.new("L", (9, 9), 205).save(tmp_path / "light" / f"{number}.png")
    (tmp_path / "light" / "letter.png").write_text("no picture")
    arguments = ["eval", str(shades / "run"), "--data", str(tmp_path), "--json"]
    assert main(arguments) == 2
    assert "1 of 4 files cannot be used, more than a share of max_unreadable=0.1" in capsys.readouterr().err
    assert main([*arguments, "--max-unreadable", "0.5"]) == 0
    out, errors = capsys.readouterr()
    assert (json.loads(out)["images"], json.loads(out)["unreadable"]) == (3, 1)
    assert errors == "vismoe: note: 'light/letter.png' is left out: no image of a known kind\n"
