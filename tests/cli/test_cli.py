"""The command: help, verbs end to end, and bad input: one line on stderr, exit code 2, nothing half-written."""

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest
from PIL import Image

import vismoe
from vismoe.adapt import run_splits
from vismoe.cli import FOLDERS, main
from vismoe.data import open_data
from vismoe.training import Run

TINY = ["--steps", "3", "--batch-size", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, sketched):
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", *TINY, "--out", str(path)]) == 0
    return path


@pytest.fixture
def images(tmp_path):
    for name in ("b", "an image, with ✓"):
        Image.new("RGB", (12, 9), "navy").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("verb", FOLDERS)
def test_help(verb, capsys):
    """Every verb explains itself, with an example, and exits with 0."""
    arguments = [verb, "digits", "--help"] if verb == "train" else [verb, "--help"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"Example: vismoe {verb}" in " ".join(text.split())
    assert "default:" in text
    assert "None" not in text


def test_usage_version_and_module(capsys, forked):
    """`vismoe`, `vismoe --version` and `python -m vismoe`, which tests/test_package.py starts from a real Python."""
    assert main([]) == main(["--version"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in FOLDERS)
    done = subprocess.run([forked, "-m", "vismoe", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vismoe {vismoe.__version__}\n"


def test_usage_imports_no_torch():
    """`vismoe --help` and `--version` come at once: a real Python shows both without importing torch or vismoe."""
    code = """
        import sys, vismoe_command
        for argument in ("--help", "--version"):
            sys.argv[1:] = [argument]
            assert vismoe_command.main() == 0
        print([name for name in ("torch", "vismoe", "numpy") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"vismoe {vismoe.__version__}", "[]"]


def test_models(capsys):
    """The table and its JSON name the same presets with the same figures."""
    assert main(["models", "vmoe_pico_patch2_8_*"]) == 0
    table = capsys.readouterr().out
    assert main(["models", "vmoe_pico_patch2_8_*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == vismoe.list_models("vmoe_pico_patch2_8_*")
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


def test_predict_formats(run, images, capsys):
    """One record an image, files and folders, in table, JSON and CSV."""
    given = [str(images), str(images / "b.png")]
    assert main(["predict", str(run), *given, "--topk", "2", "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["image"].rpartition("/")[2] for record in records] == ["an image, with ✓.png", "b.png", "b.png"]
    assert all(len(record["classes"]) == 2 for record in records)
    assert main(["predict", str(run), *given, "--topk", "2", "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["image", "class1", "probability1", "class2", "probability2"]
    assert [row[0] for row in rows[1:]] == [record["image"] for record in records]
    assert main(["predict", str(run), *given]) == 0
    assert "b.png" in capsys.readouterr().out


def test_predict_leaves_out_what_cannot_be_read(run, images, capsys):
    """Damaged files and images of other kinds in a folder are named on stderr; with nothing left it is an error."""
    (images / "broken.png").write_text("no image")
    (images / "phone.HEIC").write_bytes(b"ftypheic")
    assert main(["predict", str(run), str(images), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 2
    assert err.splitlines() == [
        "vismoe: note: 'phone.HEIC' is left out: HEIC is not read: convert it to JPEG",
        "vismoe: note: 'broken.png' is left out: not an image of a known format",
    ]
    for path in images.glob("*[a✓].png"):
        path.unlink()
    (images / "b.png").unlink()
    assert main(["predict", str(run), str(images)]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "vismoe: error: none of the images can be read: name at least one readable image"
    )


def test_upcycle_and_densify(tmp_path, capsys):
    """A dense run made sparse, whole and as differences, evaluates as its parent does; and back, with what it costs."""
    dense, sparse = str(tmp_path / "dense"), str(tmp_path / "sparse")
    assert main(["train", "digits_dense", *TINY, "--out", dense]) == 0
    assert main(["upcycle", dense, sparse, "--num-experts", "4", "--moe-layers", "1,3"]) == 0
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
    fewer = ["--data", "digits", "--images", "40", "--num-experts", "2"]
    assert main(["densify", sparse, str(tmp_path / "fewer"), *fewer]) == 0
    assert vismoe.load(tmp_path / "fewer").moe.num_experts == 2
    low_rank = str(tmp_path / "low_rank")
    assert main(["upcycle", dense, low_rank, "--num-experts", "4", "--experts", "low-rank"]) == 0
    capsys.readouterr()
    for number, words in (
        (2, "low-rank or parts of MLPs, so they cannot be merged"),
        (9, "has 4 experts; they can only"),
    ):
        refused = ["densify", low_rank, str(tmp_path / "few"), "--data", "nowhere", "--num-experts", str(number)]
        assert main(refused) == 2  # before the data set is opened
        assert words in (error := capsys.readouterr().err)
        assert ("(--how expert)" in error) == (number == 2)
    assert main(["densify", low_rank, str(tmp_path / "few"), *fewer, "--how", "expert"]) == 0
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
        monkeypatch.setattr(f"vismoe.cli.models.{verb}.cost", fails)
        assert main([verb, str(source), str(out), *more]) == 2
        assert "no cost" in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    """The demo trains both twins, shows table, image's path and what to type next; a second one begins afresh."""
    out = tmp_path / "demo"
    assert main(["demo", "--steps", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("accuracy", "parameters", "active per token", "MACs", "images/s"))
    assert "3-nearest-neighbours on the same split: 0.98" in text
    assert f"{out}/routing.png" in text
    assert f"vismoe predict {out}" in text
    for folder in (out, out / "dense"):
        assert {"recipe.json", "environment.json", "metrics.jsonl", "curves.png", "confusion.png", "model"} <= {
            path.name for path in folder.iterdir()
        }
    assert main(["demo", "--steps", "2", "--out", str(out)]) == 0
    assert "which is replaced" in capsys.readouterr().out


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


def test_output_that_nobody_reads_is_no_error(forked):
    """`vismoe … | head` ends without a word."""
    line = f"{forked} -m vismoe models --json 'vmoe_pico_patch2_8_*' | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_training_that_nobody_watches_ends_all_the_same(tmp_path, forked):
    """`vismoe train … | head -n 1`: the run is whole."""
    words = [str(forked), "-m", "vismoe", "train", "digits", "--steps", "20", "--batch-size", "8", "--device", "cpu"]
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
    (folder / "text.png").write_text("no image")
    (folder / "begun").mkdir()
    (folder / "begun" / "recipe.json").write_bytes((run / "recipe.json").read_bytes())
    (folder / "other" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "other" / "cat" / "1.png")
    out = ["--out", str(folder / "out")]
    return [
        (["fly"], "unknown command 'fly'"),
        (["train", "digitz"], "did you mean digits"),
        (
            ["train", "digits", "--model", "vmoe_pico_patch2_every2_e8", *out],
            "did you mean vmoe_pico_patch2_8_every2_e8",
        ),
        (["train", "digits", "--experts-per-token", "9", *out], "k=9 experts per token"),
        (["train", "digits", "--steps", "0", *out], "steps=0"),
        (["train", "digits", "--device", "tpu", *out], "device 'tpu'"),
        (["train", "digits", "--image-size", "1000000", *out], "image_size=1000000"),
        (["train", "digits", *TINY, "--out", str(run)], "--resume auto continues it"),
        (["eval", "vmoe_pico_patch2_8_dense"], "no data set given"),
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
        (["predict", str(run), ""], "no images given"),
        (["eval", str(run), "--data", "digits", "--device", "cpu:7"], "device 'cpu:7' is not available"),
        (["eval", str(run), "--data", "digits", "--batch-size", "0"], "batch_size=0"),
        (["models", "nothing*"], "no preset or published weights match"),
        (["upcycle", str(run), *out[1:], "--perturb", "nan"], "perturb=nan"),
        (["upcycle", str(run), *out[1:], "--block-list", "trunk"], "block_list='trunk': there is no such list"),
        (["upcycle", "vmoe_pico_patch2_8_dense", *out[1:]], "is a preset with random weights"),
        (["upcycle", str(folder / "begun"), *out[1:]], "has no model yet"),
        (["densify", str(run), *out[1:], "--data", "digits", "--max-unreadable", "nan"], "max_unreadable=nan"),
        # Only the wrong option is named.
        (
            ["densify", str(run), *out[1:], "--data", "digits", "--batch-size", "0"],
            "error: batch_size=0: accepted are",
        ),
        (
            ["densify", str(run), *out[1:], "--data", "digits", "--num-experts", "-1"],
            "error: num_experts=-1: accepted",
        ),
        (["train", "digits", *out, "--shear", "90"], "error: shear=90.0: accepted are at least 0 and below 90"),
        (["train", "digits", *out, "--split-seed", "-1"], "error: split_seed=-1: accepted are 0 to 2^32"),
        (
            ["train", "digits", *TINY, "--out", str(folder / "text.png" / "run")],
            "text.png/run: a part of this path is a file",
        ),
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
    assert "was started with another recipe (learning_rate=0.002 before, 0.5 now)" in capsys.readouterr().err


def test_divergence_has_its_own_code(tmp_path, capsys):
    """A loss that is no number any more ends the run with exit code 3 and one line."""
    arguments = [
        "train",
        "digits",
        "--steps",
        "11",
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
def shades(tmp_path_factory, sketched):
    """Dark and light images in class folders, in one piece, and a run on it."""
    place = tmp_path_factory.mktemp("shades")
    for name, grey in (("dark", 40), ("light", 200)):
        (place / "data" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (9, 9), grey + number).save(place / "data" / name / f"{number}.png")
    arguments = ["train", "digits", "--steps", "20", "--batch-size", "8", "--data", str(place / "data")]
    assert main([*arguments, "--out", str(place / "run")]) == 0
    return place


def test_a_run_is_evaluated_on_what_it_held_out(shades, tmp_path, capsys):
    """Of its own folder, named or not, on that part alone; of another one on all; where the folder has changed so that
    the part cannot be told, on nothing. Of a model that does not know its run, it says so."""
    summary = json.loads((shades / "run" / "summary.json").read_text())
    for more in ([], ["--data", str(shades / "data")]):
        assert main(["eval", str(shades / "run"), *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["part"], found["images"], found["unreadable"]) == ("held-out", 6, 0)
        assert (found["top1"], found["loss"]) == pytest.approx((summary["top1"], summary["val_loss"]))
    assert main(["eval", str(shades / "run")]) == 0
    assert "on 6 images of the validation split" in capsys.readouterr().out
    shutil.copytree(shades / "data", tmp_path / "data")
    shutil.copytree(shades / "run" / "model", tmp_path / "model")
    for model, notes in ((shades / "run", 0), (tmp_path / "model", 1)):
        assert main(["eval", str(model), "--data", str(tmp_path / "data"), "--json"]) == 0
        out, err = capsys.readouterr()
        assert (json.loads(out)["part"], json.loads(out)["images"]) == ("all", 24)
        assert err.count("if they are among these images, the metrics are too good") == notes
    shutil.copytree(shades / "run", tmp_path / "run")
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe | {"data": str(tmp_path / "data")}))
    assert main(["eval", str(tmp_path / "run")]) == 0
    (tmp_path / "data" / "dark" / "1.png").rename(tmp_path / "data" / "dark" / "new.png")
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "so its validation images are not known any more" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tuned(shades):
    """A run of finetune on a folder in one piece, with a column beside the labels."""
    data, out = shades / "tuned-data", shades / "tuned"
    shutil.copytree(shades / "data", data)
    rows = [f"{name}/{n}.png,{'ann' if n % 2 else 'bob'}" for name in ("dark", "light") for n in range(12)]
    (data / "metadata.csv").write_text("\n".join(["file_name,who", *rows]))
    arguments = ["--sparse", "--epochs", "1", "--image-size", "8", "--out", str(out), "--device", "cpu"]
    assert main(["finetune", "--data", str(data), *arguments]) == 0
    return out


def test_a_finetuned_run_is_evaluated_on_what_it_never_saw(shades, tuned, capsys):
    """Every metric is of the test split and equals the report's, whatever else was put into the folder since."""
    report = json.loads((tuned / "report.json").read_text())
    test = json.loads((tuned / "split.json").read_text())["test"]
    Image.new("L", (9, 9), 90).save(shades / "tuned-data" / "dark" / "later.png")
    for more in ([], ["--data", str(shades / "tuned-data")]):
        assert main(["eval", str(tuned), "--json", "--device", "cpu", "--group", "who", *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["part"], found["images"]) == ("test", len(test))
        assert {name: found[name] for name in report["test"]} == pytest.approx(report["test"], abs=1e-5)
        recall = {row["class"]: row["recall"] for row in report["classes"]}
        assert found["per_class"] == pytest.approx(recall)
        odd = sum(int(file.rpartition("/")[2].removesuffix(".png")) % 2 for file in test)
        assert {group["name"]: group["images"] for group in found["groups"]} == {"ann": odd, "bob": len(test) - odd}
    assert main(["eval", str(tuned), "--device", "cpu"]) == 0
    assert f"on {len(test)} images of the test split" in capsys.readouterr().out


def check_evaluated_as_the_test_split(tuned, model, notes, capsys):
    """Evaluates a model on a run's test split, and counts the notes that it may know these images."""
    test = json.loads((tuned / "split.json").read_text())["test"]
    expected = json.loads((tuned / "report.json").read_text())["test"]
    assert main(["eval", str(model), "--data", f"{tuned}/", "--json", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["part"], found["images"]) == ("test", len(test))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert err.count("if it was trained on these images, the metrics are too good") == notes


def test_a_run_as_data_stands_for_its_test_split(tuned, run, tmp_path, capsys):
    """A copied model folder is evaluated on the images that the run never saw, without a note; of another run it is
    noted that its training images may be among them."""
    shutil.copytree(tuned / "model", tmp_path / "copied")
    shutil.copytree(tuned, tmp_path / "other")
    capsys.readouterr()
    check_evaluated_as_the_test_split(tuned, tmp_path / "copied", 0, capsys)
    check_evaluated_as_the_test_split(tuned, tmp_path / "other", 1, capsys)
    assert main(["eval", str(run), "--data", str(run), "--json"]) == 0  # the run of a named set
    assert json.loads(capsys.readouterr().out)["images"] == 450
    assert main(["densify", str(tuned), str(tmp_path / "dense"), "--data", str(tuned)]) == 0
    test = json.loads((tuned / "split.json").read_text())["test"]
    assert capsys.readouterr().out.count(f"on {len(test)} images") == 2


@pytest.mark.slow
def test_an_exported_run_on_its_test_split(tuned, tmp_path, capsys):
    """The exported file is evaluated on the images that the run never saw; exporting says its steps."""
    capsys.readouterr()
    assert main(["export", str(tuned), str(tmp_path / "mine.onnx")]) == 0
    steps = ["vismoe: exporting the model …", "vismoe: verifying the file in ONNX Runtime …"]
    assert capsys.readouterr().err.splitlines() == steps
    check_evaluated_as_the_test_split(tuned, tmp_path / "mine.onnx", 0, capsys)


def test_fewshot_and_densify_keep_to_the_run_s_parts(tuned, tmp_path, capsys):
    """Images are drawn from what the run was trained on, and evaluated on its test split."""
    files = json.loads((tuned / "split.json").read_text())["files"]
    test = [file for file, part in files.items() if part == "test"]
    data = run_splits(Run(tuned))
    assert set(data.val.files) == set(test)
    assert set(data.train.files) == files.keys() - set(test)
    assert main(["fewshot", str(tuned), "--shots", "1", "--seeds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(test)
    where = Run(tuned).recipe.data
    assert main(["densify", str(tuned), str(tmp_path / "dense"), "--data", where]) == 0
    assert capsys.readouterr().out.count(f"on {len(test)} images") == 2


def test_an_unfinished_run_has_no_test_part(shades, tuned, tmp_path, capsys, monkeypatch):
    """Stopped, it has a model, but its own set is not evaluated on, as its parts are not written down."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tuned, tmp_path / "run")
    (tmp_path / "run" / "split.json").unlink()
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "give the same `vismoe finetune` command again" in capsys.readouterr().err
    shutil.copytree(tuned / "model", tmp_path / "run" / "initial")
    image = str(shades / "tuned-data" / "dark" / "0.png")
    data = ["--data", str(shades / "tuned-data")]
    for command in (["predict", str(tmp_path / "run"), image], ["eval", str(tmp_path / "run" / "model"), *data]):
        main(command)
        error = capsys.readouterr().err
        assert "run is not finished, so its model is neither fully trained nor tested: give the same" in error
    shutil.rmtree(tmp_path / "run" / "model")
    assert main(["predict", str(tmp_path / "run"), image]) == 2
    error = capsys.readouterr().err
    assert "has no model yet: wait" in error
    assert "give the same `vismoe finetune`" in error
    assert main(["predict", str(tuned), image]) == 0
    assert capsys.readouterr().err == ""


def test_a_finetuned_run_on_a_named_set_has_the_set_s_parts(run, tmp_path):
    """Whatever its seed, which draws the validation part alone."""
    recipe = json.loads((run / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"split_seed": 3}))
    (tmp_path / "split.json").write_text('{"test": [], "files": {}}')
    assert run_splits(Run(tmp_path)).val.labels.tolist() == open_data("digits").val.labels.tolist()


def test_finetune_refuses_what_it_cannot_start_from(shades, capsys):
    data = str(shades / "data")
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
    (tmp_path / "data" / "light").rename(tmp_path / "data" / "bright")
    assert main(arguments) == 2
    assert "classes that the model does not know: bright" in capsys.readouterr().err


def test_eval_leaves_out_what_cannot_be_read(shades, tmp_path, capsys):
    """One of four is too many, unless accepted: then named on stderr, and counted."""
    (tmp_path / "light").mkdir()
    for number in range(3):
        Image.new("L", (9, 9), 205).save(tmp_path / "light" / f"{number}.png")
    (tmp_path / "light" / "letter.png").write_text("no image")
    arguments = ["eval", str(shades / "run"), "--data", str(tmp_path), "--json"]
    assert main(arguments) == 2
    assert "1 of 4 files cannot be used, more than a fraction of max_unreadable=0.1" in capsys.readouterr().err
    assert main([*arguments, "--max-unreadable", "0.5"]) == 0
    out, errors = capsys.readouterr()
    assert (json.loads(out)["images"], json.loads(out)["unreadable"]) == (3, 1)
    left_out, missing, names, step = errors.splitlines()
    assert left_out == "vismoe: note: 'light/letter.png' is left out: not an image of a known format"
    assert "no images of dark" in missing
    assert "3 of these 3 images have names of training images" in names
    assert step == "vismoe: evaluating on 3 images …"
