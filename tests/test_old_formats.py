"""pytest tests/test_old_formats.py: what an earlier version wrote opens, goes on and gives the same answers.

The files in old_formats/ were written by commit 1558405, and so were the answers in expected.json (old_formats/make.py
says how). They stay as they are: a later format gets files of its own beside them.
"""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vismoe
from vismoe.cli import main

OLD = Path(__file__).resolve().parent / "old_formats"
REBALANCED = "router.balance_bias"
"""Of an EMA it is fitted to the weights before they are saved, which 1558405 did not do."""
EXPECTED, CONFIGURATIONS = (json.loads((OLD / f"{name}.json").read_text()) for name in ("expected", "configurations"))
CLASSES, COUNT, SIDE = ("1", "4", "7"), 20, 8
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Not bit-equal, as on one machine: another CPU may add up in another order."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with the pictures that the earlier version saw, in a folder for each class."""
    monkeypatch.chdir(tmp_path)
    with Image.open(OLD / "digits.png") as strip:
        for row, name in enumerate(CLASSES):
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for column in range(COUNT):
                left, top = column * SIDE, row * SIDE
                digit = strip.crop((left, top, left + SIDE, top + SIDE))
                digit.save(tmp_path / "pictures" / name / f"{column:02d}.png")
    return tmp_path


def copy(name, to):
    return Path(shutil.copytree(OLD / name, to))


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


def pixels(size):
    return torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.inference_mode()
def check_logits(model, expected):
    found = model.eval()(pixels(expected["input_size"]))
    torch.testing.assert_close(getattr(found, "logits", found), torch.tensor(expected["logits"]), **CLOSE)


def check_predictions(found, expected):
    """Of lists of (name, probability), one a picture."""
    assert [[name for name, _ in classes] for classes in found] == [[name for name, _ in each] for each in expected]
    for classes, each in zip(found, expected, strict=True):
        assert [value for _, value in classes] == pytest.approx([value for _, value in each], abs=1e-5)


def check_answers(folder, expected):
    """Opens a folder, calls the network, and asks it what is on a picture of each class."""
    model = vismoe.load(folder)
    check_logits(model, expected)
    found = vismoe.predict(model, [f"pictures/{name}/00.png" for name in CLASSES], topk=3)
    check_predictions([prediction.classes for prediction in found], expected["predictions"])


def check_weights(found, expected, but=None):
    """Of two files: the same names, types and shapes, and values that are close, but of names that end in `but`."""
    found, expected = load_file(found), load_file(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        if but and name.endswith(but):
            continue
        torch.testing.assert_close(found[name], expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def stopped(name):
    """A copy of a run that is to go on. The first line of its metrics is there twice: a run that begins again, and
    could end as well as one that goes on, would write it once."""
    run = copy(name, "run")
    first, *rest = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([first, first, *rest]))
    return run


def check_end(name, expected, but=None):
    """A run that went on: it is logged without a gap, and ends as it would have ended without the stop."""
    run = Path("run")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [EXPECTED[name]["steps"][0], *EXPECTED[name]["steps"]], "it did not go on from its checkpoint"
    summary = read(run, "summary.json")
    end = {figure: summary[figure] for figure in ("top1", "val_loss")}
    assert end == pytest.approx(EXPECTED[name]["end"], abs=1e-5)
    check_weights(run / "model" / "model.safetensors", expected, but)


def evaluate(folder, capsys):
    capsys.readouterr()
    assert main(["eval", str(folder), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def check_evaluation(found, expected):
    """What `vismoe eval` says of a run."""
    assert (found["part"], found["images"]) == (expected["part"], expected["images"])
    assert (found["top1"], found["loss"]) == pytest.approx((expected["top1"], expected["loss"]), abs=1e-5)
    assert found["per_class"] == pytest.approx(expected["per_class"], abs=1e-5)


@pytest.mark.parametrize("name", ["run_adamw", "dense", "ensemble", "parent", "finetune_finished", "low_rank"])
def test_model_folders(name):
    """A model folder (of a sparse preset, its dense twin, an ensemble; of a dense network of timm's, and that upcycled,
    with full and with low-rank experts) opens with vismoe.load and with timm, and gives the answers that it gave, by
    the same names."""
    folder, expected = OLD / name / ("model" if (OLD / name / "model").is_dir() else ""), EXPECTED[name]["model"]
    check_answers(folder, expected)
    check_logits(timm.create_model(f"local-dir:{folder}", pretrained=True), expected)


def test_differences_from_a_parent():
    """A folder that holds only what differs from its parent finds that by path and hash, and answers as it did."""
    folder, parent = copy("differences", "differences"), copy("parent", "parent")
    config = read(folder, "config.json")
    config["parent"]["source"] = str(parent.resolve())  # the absolute path, as it was written on some machine
    (folder / "config.json").write_text(json.dumps(config))
    check_answers(folder, EXPECTED["differences"]["model"])


def test_transformers_folder():
    """An upcycled network of transformers' opens with vismoe.load and with transformers' Auto class, and gives the
    answers that it gave."""
    transformers = pytest.importorskip("transformers")
    expected = EXPECTED["transformers"]["model"]
    check_answers(OLD / "transformers", expected)
    check_logits(transformers.AutoModelForImageClassification.from_pretrained(OLD / "transformers"), expected)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(name):
    """A config.json of each router, and of other parts of a network, builds the network that it built: with weights of
    the same names, types and shapes, and the same outputs for them."""
    folder, generator, weights = Path("model"), torch.Generator().manual_seed(0), {}
    for key, (dtype, shape) in sorted(CONFIGURATIONS[name]["tensors"].items()):
        uniform = torch.rand(shape, generator=generator)  # its bits are the same on all machines
        weights[key] = (uniform - 0.5).to(getattr(torch, dtype))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGURATIONS[name]["config"]))
    save_file(weights, folder / "model.safetensors")
    check_logits(vismoe.load(folder), EXPECTED["configurations"][name])


def test_exported_file(capsys):
    """An exported ONNX file still says how pictures are prepared and what the classes are called: `vismoe predict`
    gives the answers that it gave."""
    pytest.importorskip("onnxruntime")
    pictures = [f"pictures/{name}/00.png" for name in CLASSES]
    options = ["--topk", "3", "--format", "json", "--device", "cpu"]
    assert main(["predict", str(OLD / "run_adamw.onnx"), *pictures, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["image"] for each in found] == pictures
    named = [[(each["name"], each["probability"]) for each in image["classes"]] for image in found]
    check_predictions(named, EXPECTED["onnx"])


def test_finished_run(capsys):
    """A finished run opens as a model, and `vismoe eval` finds its own held-out part and its figures again."""
    check_answers(OLD / "run_adamw", EXPECTED["run_adamw"]["model"])
    check_evaluation(evaluate(OLD / "run_adamw", capsys), EXPECTED["run_adamw"]["evaluation"])


def test_finished_run_at_its_end():
    """Resumed, a finished run has nothing to do: it ends with the weights of its last checkpoint, bit for bit."""
    stopped("run_adamw")
    assert main([*EXPECTED["run_adamw"]["command"], "--resume", "auto"]) == 0
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (Path("run"), OLD / "run_adamw"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.endswith(REBALANCED))
    check_end("run_adamw", OLD / "run_adamw" / "model" / "model.safetensors", REBALANCED)


def test_resume_adamw():
    """A run by AdamW with an average of weights, of which only the checkpoint in the middle and what came before is
    left, goes on by the same command, and ends as it ended."""
    run, expected = stopped("run_adamw"), EXPECTED["run_adamw"]
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != f"step-{expected['middle']:06d}":
            shutil.rmtree(checkpoint)
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    assert main([*expected["command"], "--resume", "auto"]) == 0
    check_end("run_adamw", OLD / "run_adamw" / "model" / "model.safetensors", REBALANCED)


@pytest.mark.parametrize("form", [2, 1])
def test_resume_momentum(form):
    """A run by SGD with momentum that SIGTERM stopped goes on by the same command, and ends as it would have ended:
    from a checkpoint of format 2, and of format 1, which differs in the name of the best score."""
    run, expected = stopped("run_momentum"), EXPECTED["run_momentum"]
    if form == 1:
        checkpoint = run / "checkpoints" / f"step-{expected['middle']:06d}"
        shutil.copytree(OLD / "run_momentum" / "format_1", checkpoint, dirs_exist_ok=True)
    assert main([*expected["command"], "--resume", "auto"]) == 0
    check_end("run_momentum", OLD / "run_momentum" / "end.safetensors")


def test_finished_finetune(capsys):
    """A finished adaptation opens as a model, `vismoe eval` finds its own test part and its figures again, and the same
    command says that it is finished."""
    copy("finetune_finished", "run")
    copy("parent", "parent")
    check_answers("run", EXPECTED["finetune_finished"]["model"])
    check_evaluation(evaluate("run", capsys), EXPECTED["finetune"]["evaluation"])
    assert main(EXPECTED["finetune"]["command"]) == 2
    assert "run is finished" in capsys.readouterr().err


def test_stopped_finetune(capsys):
    """An adaptation that SIGTERM stopped has left a model that answers; the same command goes on with it from the
    network that it began with and its checkpoint, and ends as it would have ended, split, report and all."""
    stopped("finetune_stopped")
    Path("parent").mkdir()  # its weights are not read again
    check_answers("run", EXPECTED["finetune_stopped"]["model"])
    assert main(EXPECTED["finetune"]["command"]) == 0
    assert f"resuming after step {EXPECTED['finetune']['middle']}" in capsys.readouterr().out
    check_end("finetune", OLD / "finetune_finished" / "model" / "model.safetensors")
    assert read("run", "split.json") == read(OLD / "finetune_finished", "split.json")
    ours, theirs = read("run", "report.json"), read(OLD / "finetune_finished", "report.json")
    assert ours["test"] == pytest.approx(theirs["test"], abs=1e-5)
    assert all(ours[name] == theirs[name] for name in ("right", "trained"))
    assert ours["images"] == theirs["pictures"]  # its name before
