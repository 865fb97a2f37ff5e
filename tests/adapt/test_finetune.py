"""pytest tests/adapt/test_finetune.py: from a folder of images to a classifier and its report."""

import csv
import json
import os
import re
import shutil
import signal
import sys
import zipfile
from dataclasses import asdict, replace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import vismoe
from vismoe.adapt import Options, finetune, freeze
from vismoe.adapt.classification.calibrate import divide_logits, fit_temperature
from vismoe.adapt.classification.initial_model import initial_model
from vismoe.adapt.reserve_run import check_run_folder, reserve
from vismoe.adapt.splits import open_splits
from vismoe.data import open_data
from vismoe.inference import evaluate, predict
from vismoe.moe import MoE
from vismoe.training import TrainingStoppedError
from vismoe.training.optimizer import freeze as freeze_named

from .small import options as small_options
from .small import small_vit

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


def image(colour, number):
    """Noise around a colour, no two alike."""
    generator = torch.Generator().manual_seed(number * 1000 + sum(colour))
    noise = torch.randint(-40, 40, (9, 12, 3), generator=generator)
    return Image.fromarray((torch.tensor(colour) + noise).clamp(0, 255).byte().numpy())


def fill(folder, count=24, classes=COLOURS):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image(COLOURS[name], number).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pictures") / "colours")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return vismoe.save(small_vit(), tmp_path_factory.mktemp("parent") / "model")


def options(folder, parent, **changes):
    experts = {"num_experts": 3, "experts": "full"} if changes.get("sparse", True) else {}
    return small_options(folder, parent, **experts | changes)


@pytest.fixture(scope="module")
def done(folder, parent, tmp_path_factory, sketched):
    told = []
    found = finetune(options(folder, parent), tmp_path_factory.mktemp("run") / "run", device="cpu", log=told.append)
    return found, told


def test_all_is_written(done):
    """Model, report, tables and images; the model opens with timm, knows its classes, and predicts."""
    found, told = done
    path = found.run.path
    names = {
        "report.json",
        "classes.csv",
        "calibration.png",
        "confusion.png",
        "curves.png",
        "routing.png",
        "split.json",
    }
    there = {file.name for file in path.iterdir()}
    assert names <= there
    assert not {"initial", "checkpoints"} & there  # several times the weights, and of no more use
    assert json.loads((path / "report.json").read_text())["test"] == found.report["test"]
    model = timm.create_model(f"local-dir:{path / 'model'}", pretrained=True)
    assert sum(isinstance(module, MoE) for module in model.modules()) == 2
    (answer,) = predict(found.run.load_model(), image(COLOURS["blue"], 777))
    assert {name for name, _ in answer.classes} == set(COLOURS)
    card = (path / "model" / "README.md").read_text()
    assert f"{found.report['test']['top1']:.4f}" in card
    assert "licence" in card
    assert any("a linear classifier on the frozen network" in line for line in told)
    ending = r"training ended after step \d+ of \d+.*; the weights of step \d+ are kept"
    assert any(re.fullmatch(ending, line) for line in told)
    assert found.report["trained_notes"] == []
    assert "Fine-tuned with vismoe from model (" in card  # no path of somebody's machine


def test_the_report_is_of_images_that_nothing_was_chosen_by(done, folder):
    """The three splits are disjoint and make up the set; the metrics are those of the test split, computed anew."""
    found, _ = done
    split = json.loads((found.run.path / "split.json").read_text())
    whole = open_data(str(folder)).val
    assert set(split["files"]) == set(whole.files)
    counts = {part: list(split["files"].values()).count(part) for part in ("train", "validation", "test")}
    assert counts == found.report["images"]
    test = whole.subset([place for place, file in enumerate(whole.files) if file in set(split["test"])])
    again = evaluate(found.run.load_model(), test)
    assert again.metrics == pytest.approx(found.report["test"], abs=1e-5)
    with (found.run.path / "classes.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    for number, name in enumerate(sorted(COLOURS)):
        of_class = test.labels == number
        recall = (again.scores.argmax(1)[of_class] == number).float().mean().item()
        assert float(rows[name]["recall"]) == pytest.approx(recall, abs=1e-4)
        assert float(rows[name]["low"]) <= recall + 1e-4
        assert float(rows[name]["high"]) >= recall - 1e-4


def test_it_is_no_worse_than_the_head_alone(folder, parent, tmp_path):
    """A training that does harm is thrown away: what is kept has the linear classifier's metric on the test split."""
    told = []
    found = finetune(options(folder, parent, learning_rate=5.0), tmp_path / "run", device="cpu", log=told.append)
    summary = found.run.summary
    assert summary["top1"] == found.report["probe"]["validation"]
    assert summary["dropped"]["top1"] < summary["top1"]
    assert found.report["test"]["top1"] == pytest.approx(found.report["probe"]["test"])
    probe = found.report["probe"]["validation"]
    kept = (
        rf"the linear classifier \({probe:.4f} on the validation split\) is better than the trained network \(0\.\d+\)"
    )
    (better,) = (line for line in told if re.fullmatch(rf"{kept} and is kept", line))
    untrained = (
        "the experts of this model are not trained: routing.png and a comparison with --dense say nothing about it"
    )
    assert found.report["trained_notes"] == [better, untrained]
    assert untrained in told
    assert not any("weights of step" in line for line in told)  # those of no step are kept
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"T{better[1:]}. T{untrained[1:]}." in card


def test_the_routing_that_is_drawn_is_that_of_what_is_kept(folder, parent, tmp_path, monkeypatch):
    """routing.png: of the kept network, with a line that says so if it is not the trained one, or its experts are not
    trained. A network that comes with trained experts has them when its classifier alone is trained."""
    drawn = []

    def watched(predictor, images, classes, path, note=""):
        weights = {name: value.clone() for name, value in predictor.model.state_dict().items()}
        drawn.append((weights, note, path / "routing.png"))

    for module in ("vismoe.adapt.classification.adaptation", "vismoe.training.report"):
        monkeypatch.setattr(sys.modules[module], "routing_images", watched)

    def last(name, **changes):
        found = finetune(options(folder, parent, **changes), tmp_path / name, device="cpu")
        weights, note, path = drawn[-1]
        assert path == tmp_path / name / "routing.png"
        saved = found.run.load_model().state_dict()
        assert all(torch.equal(weights[key], value) for key, value in saved.items() if not key.startswith("head."))
        return found, note

    before = "network before training, kept with its linear classifier; its experts are not trained"
    assert last("spoiled", learning_rate=5.0)[1] == before
    assert last("head", train="head")[1] == "its experts are not trained"
    assert last("low rank", train="head", experts="low-rank")[1] == "its experts are not trained"
    trained, note = last("trained")
    assert (trained.report["trained"], note) == ("last-third", "")
    again = Options(str(folder), source=str(trained.run.path), train="head")
    assert finetune(again, tmp_path / "again", device="cpu").report["trained_notes"] == []
    assert drawn[-1][1] == ""


def test_a_dense_network_has_no_untrained_experts(folder, parent, head_alone, tmp_path):
    """If its classifier alone is trained, or kept, nothing is said about experts; of a sparse one it is."""
    told = []
    finetune(options(folder, parent, sparse=False, train="head"), tmp_path / "run", device="cpu", log=told.append)
    said = "experts of this model are not trained"
    assert not any(said in line or "training ended" in line for line in told)
    assert any(said in note for note in head_alone.report["trained_notes"])


@pytest.mark.parametrize("train", ["all", "last-third", "experts", "head"])
def test_what_does_not_train_stays_bit_equal(folder, parent, tmp_path, train):
    """And what trains has moved; the head alone takes no step."""
    asked = options(folder, parent, train=train, freeze_router=True)
    parts = open_splits(asked.data, asked.seed, 0.1)
    before = initial_model(asked, parts, tmp_path / "begun", torch.device("cpu"), 0, print)[0].state_dict()
    finetune(asked, tmp_path / "run", device="cpu")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(".router." in name for name in moved)
    assert ("patch_embed.proj.weight" in moved) == (train == "all")
    assert any("blocks.2.attn" in name for name in moved) == (train in ("all", "last-third"))
    assert any("experts" in name for name in moved) == (train != "head")


def test_interrupted_it_leaves_a_model_and_goes_on_to_the_same_end(folder, parent, tmp_path):
    """SIGTERM in the midst: a model is there; the same call again ends bit-equal to one that was never interrupted."""
    asked = options(folder, parent, epochs=3)
    whole = finetune(asked, tmp_path / "whole", device="cpu")

    def stop(status):
        if status.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError, match="give the same command again to continue"):
        finetune(asked, tmp_path / "run", device="cpu", on_status=stop)
    assert {name for name, _ in predict(vismoe.load(tmp_path / "run"), image((0, 0, 0), 1))[0].classes} == set(COLOURS)
    with pytest.raises(FileExistsError, match="started with other options"):
        finetune(replace(asked, seed=1), tmp_path / "run", device="cpu")
    told = []
    again = finetune(asked, tmp_path / "run", device="cpu", log=told.append)
    assert "resuming after step 3" in told
    one, other = (load_file(each.run.path / "model" / "model.safetensors") for each in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.report["test"] == whole.report["test"]
    with pytest.raises(FileExistsError, match="is finished"):
        finetune(asked, tmp_path / "run", device="cpu")


def test_dense_and_low_rank(folder, parent, tmp_path):
    """--dense leaves the parent's class; experts, low-rank unless asked otherwise, keep its MLPs as they were."""
    dense = finetune(options(folder, parent, sparse=False, train="all"), tmp_path / "dense", device="cpu")
    assert not any(isinstance(module, MoE) for module in dense.run.load_model().modules())
    asked = Options(str(folder), str(parent), sparse=True, num_experts=3, epochs=2, train="all")
    sparse = finetune(asked, tmp_path / "low", device="cpu")
    own = vismoe.load(parent).blocks[3].mlp.fc1.weight
    assert torch.equal(sparse.run.load_model().blocks[3].mlp.experts.mlp.up.weight, own)
    asked = options(folder, sparse.run.path, sparse=False)
    with pytest.raises(ValueError, match="is sparse: `vismoe densify`"):
        finetune(asked, tmp_path / "not", device="cpu")


@pytest.mark.parametrize("sparse", [None, True])
def test_from_scratch_and_from_a_zip(sparse, tmp_path, folder, monkeypatch):
    """No network is needed, and it has experts unless a dense one is asked for; a zip is what it holds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "colours.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder.parent))
    asked = Options(str(tmp_path / "colours.zip"), sparse=sparse, epochs=1, image_size=16)
    told = []
    found = finetune(asked, tmp_path / "run", device="cpu", log=told.append)
    assert any("a trained network is usually much more accurate" in line for line in told)
    assert any(isinstance(module, MoE) for module in found.run.load_model().modules()) == bool(sparse)
    assert found.report["probe"] is None
    assert "from scratch" in found.report["origin"]
    assert found.report["images"]["train"] > 30


def test_copies_are_on_one_side(tmp_path, parent):
    """Exact and near copies of an image never part, and the report counts them."""
    fill(tmp_path / "data", 12)
    for name, colour in COLOURS.items():
        for number in range(6):
            Image.effect_mandelbrot((60, 50), (-2 + number / 9, -1.2, 0.6, 1.1 + number / 5), 90).convert("RGB").save(
                tmp_path / "data" / name / f"m{sum(colour)}-{number}.png"
            )
            image(colour, number).save(tmp_path / "data" / name / f"copy-{number}.png")
    found = finetune(options(tmp_path / "data", parent), tmp_path / "run", device="cpu")
    files = json.loads((tmp_path / "run" / "split.json").read_text())["files"]
    for name in COLOURS:
        for number in range(6):
            assert files[f"{name}/copy-{number}.png"] == files[f"{name}/{number}.png"]
    assert len(found.report["data"]["exact_duplicates"]) >= 18


def test_two_images_a_class(tmp_path, parent):
    """One training and one test image a class: there is no validation split, nothing is selected, and that is said."""
    told, statuses = [], []
    fill(tmp_path / "data", 2)
    asked = options(tmp_path / "data", parent)
    found = finetune(asked, tmp_path / "run", device="cpu", log=told.append, on_status=statuses.append)
    assert {status.score_split for status in statuses} == {"training"}
    assert found.report["images"] == {"train": 3, "validation": 0, "test": 3}
    assert found.report["temperature"] == 1.0
    assert any("no validation (too few images" in line for line in told)
    note = "no temperature is fitted, so probabilities may be too high or too low: there is no validation split"
    assert note in told


def test_several_labels_a_image(tmp_path, parent):
    """A metadata.csv with several labels an image: mean average precision, a sigmoid each."""
    (tmp_path / "data").mkdir()
    rows = ["file_name,labels"]
    for number in range(40):
        names = [name for place, name in enumerate(COLOURS) if number >> place & 1] or ["red"]
        mean = tuple(int(sum(COLOURS[name][c] for name in names) / len(names)) for c in range(3))
        image(mean, number).save(tmp_path / "data" / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(names)}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows))
    found = finetune(options(tmp_path / "data", parent), tmp_path / "run", device="cpu")
    assert found.report["score"] == "mean_average_precision"
    assert {"average_precision", "recall"} <= found.report["classes"][0].keys()
    assert not (tmp_path / "run" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: fill(place, 6, ["red"]), "has one class, red"),
        (lambda place: place.mkdir(), "no class folders"),
        (lambda place: fill(place, 1), "two images that are not copies"),
    ],
)
def test_sets_that_cannot_be_trained_on(tmp_path, parent, make, message):
    """A clear error, before anything is trained."""
    make(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        finetune(options(tmp_path / "data", parent), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_too_many_unreadable_files(tmp_path, parent):
    """40 %: refused with names; on request they are left out."""
    fill(tmp_path / "data", 10)
    for name in COLOURS:
        for number in range(4):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="12 of 30 files cannot be used"):
        finetune(options(tmp_path / "data", parent), tmp_path / "run", device="cpu")
    found = finetune(options(tmp_path / "data", parent), tmp_path / "run", device="cpu", max_unreadable=0.5)
    assert len(found.report["data"]["left_out"]) == 12


def test_as_many_unreadable_files_as_are_accepted(tmp_path, parent):
    """10 % of the files, no more than the limit, of the set: not of the part of it that is trained on."""
    fill(tmp_path / "data", 20)
    broken = [f"{name}/{number}.png" for name in sorted(COLOURS) for number in (0, 1)]
    for file in broken:
        (tmp_path / "data" / file).write_bytes(b"no image")
    found = finetune(options(tmp_path / "data", parent, epochs=1), tmp_path / "run", device="cpu", max_unreadable=0.1)
    assert [entry["file"] for entry in found.run.data["unreadable"]] == broken


def test_what_has_no_mlps_is_trained_dense(tmp_path, folder):
    """A convolutional network cannot be upcycled: the error says how to go on; unless asked for it is not tried."""
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    asked = Options(str(folder), str(vismoe.save(model, tmp_path / "cnn")), image_size=32, epochs=1)
    with pytest.raises(ValueError, match="--dense trains it as it is"):
        finetune(replace(asked, sparse=True), tmp_path / "run", device="cpu")
    found = finetune(asked, tmp_path / "run", device="cpu")
    assert found.report["probe"] is not None


@pytest.mark.parametrize(
    ("asked", "sparse"),
    [
        ({}, False),
        ({"sparse": True}, True),
        ({"num_experts": 4}, True),
        ({"num_experts": 8}, True),
        ({"moe_layers": "last-2"}, True),
        ({"experts": "low-rank"}, True),
        ({"experts": "full"}, True),
        ({"moe_layers": "1,3"}, True),
        ({"train": "experts"}, True),
        ({"train": "last-third"}, False),
        ({"source": None}, False),
        ({"source": None, "sparse": True}, True),
        ({"source": None, "sparse": False}, False),
    ],
)
def test_when_a_network_is_made_sparse(asked, sparse):
    """A network stays dense, which did no worse (docs/finetune.md), unless an option of experts is given."""
    assert Options(**{"data": "digits", "source": "hf:some/where"} | asked).makes_sparse == sparse


def test_saved_options_of_experts(tmp_path):
    """A default that is given is not one that is left out; files of versions that saved defaults are still resumed."""
    asked, sparse = Options("digits", "somewhere"), Options("digits", "somewhere", num_experts=8)
    reserve(asked, tmp_path / "run")
    check_run_folder(asked, tmp_path / "run")
    with pytest.raises(FileExistsError, match="made_sparse=False then, True now"):
        check_run_folder(sparse, tmp_path / "run")
    old = asdict(asked) | {"num_experts": 8, "layers": "last-2", "experts": "low-rank"}
    del old["moe_layers"]
    (tmp_path / "run" / "finetune.json").write_text(json.dumps(old))
    check_run_folder(asked, tmp_path / "run")
    with pytest.raises(FileExistsError, match="made_sparse=False then, True now"):
        check_run_folder(sparse, tmp_path / "run")


def test_an_existing_folder_is_left_alone(tmp_path, folder, parent):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a run of finetune"):
        finetune(options(folder, parent), tmp_path / "mine", device="cpu")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_temperature_is_the_best_there_is():
    """Against a fine grid; and built into the head it divides the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 4, generator=generator)
    labels = torch.distributions.Categorical(logits=logits / 2.5).sample()
    found = fit_temperature(logits, labels)
    grid = torch.linspace(0.5, 6, 2000)
    losses = torch.stack([nn.functional.cross_entropy(logits / t, labels, label_smoothing=1 / 202) for t in grid])
    assert found == pytest.approx(float(grid[losses.argmin()]), abs=5e-3)
    model, x = (
        timm.create_model("vit_tiny_patch16_224", img_size=16, depth=1, num_classes=4).eval(),
        torch.randn(2, 3, 16, 16),
    )
    nn.init.normal_(model.head.bias)
    before = model(x)
    assert divide_logits(model, 2.0)
    torch.testing.assert_close(model(x), before / 2)


def test_temperature_without_an_error():
    """Of 98 images that are all right, a probability is at most that of one error among as many: it is not sure."""
    labels = torch.arange(98) % 2
    logits = 20.0 * nn.functional.one_hot(labels, 2)
    probability = (logits / fit_temperature(logits, labels)).softmax(1).amax(1)
    assert probability.tolist() == pytest.approx([1 - 0.5 / 100] * 98, abs=1e-4)
    several = labels[:, None].bool()
    scores = torch.where(several, 20.0, -20.0)
    assert (scores / fit_temperature(scores, several)).sigmoid().amax().item() == pytest.approx(1 - 0.5 / 100, abs=1e-4)


def test_freeze_says_what_it_cannot():
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, depth=1, num_classes=0)
    with pytest.raises(ValueError, match="the model is dense, so it has no experts"):
        freeze(model, "experts")
    with pytest.raises(ValueError, match="the classifier of VisionTransformer is not known"):
        freeze(model, "head")


@pytest.mark.parametrize("router", ["hash", "top-k"])
def test_balancing_follows_what_trains(router):
    """Whatever freezes a layer stops its balancing, whether or not its router has parameters that say so; what frees
    it lets it go on. Of a learned router its own parameters decide, not the experts'."""
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", router=router)
    layer = next(module for module in model.modules() if isinstance(module, MoE))

    def counts():
        layer.router.reset_balance()
        model.train()(torch.randn(2, 3, 8, 8))
        return bool(layer.router.balance_count.any())

    freeze(model, "head")
    assert not counts()
    freeze(model, "experts")
    assert counts()
    freeze(model, "experts", router=False)
    assert not counts()
    freeze(model, "all")
    assert counts()
    freeze_named(model, r"\.experts\.")
    assert counts() == (router == "top-k")
    freeze(model, "all", router=False)
    freeze_named(model, r"^head\.")  # frees nothing
    assert not counts()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image_size": 0}, "image_size=0: accepted are 1 to 4096"),
        ({"epochs": -1}, "epochs=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: it must be positive and finite"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"class_weights": float("inf")}, "class_weights=inf: accepted are 0 to 10"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"sparse": False, "num_experts": 8}, "num_experts=8: a dense network has no experts"),
        ({"sparse": False, "experts": "full"}, "experts='full': a dense network has no experts"),
        ({"sparse": False, "train": "experts"}, "train='experts': a dense network has no experts"),
        *(
            (
                {"source": source, "train": train},
                f'train="{train}": without a trained network, the weights that are not',
            )
            for train in ("head", "last-third", "last-two", "experts")
            for source in (None, "vmoe_pico_patch2_8_every2_e8")
        ),
    ],
)
def test_options_that_cannot_be_followed(given, told):
    """They are refused before an image is opened or a folder made."""
    with pytest.raises(ValueError, match=re.escape(told)):
        Options("nowhere", **{"source": "nothing"} | given)


def test_values_that_the_set_decides_upon(folder, tmp_path):
    """A size that no patch fits names those that fit; a negative number of workers is said in the tool's words."""
    with pytest.raises(ValueError, match="image_size=37: use a multiple of 8, such as 32 or 40"):
        finetune(Options(str(folder), image_size=37), tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="workers=-1: accepted are at least 0"):
        finetune(Options(str(folder)), tmp_path / "run", device="cpu", workers=-1)
    assert not (tmp_path / "run").exists()


def test_frozen_random_routers_are_said(folder, tmp_path):
    told = []
    asked = Options(str(folder), freeze_router=True, image_size=16, epochs=1)
    finetune(asked, tmp_path / "run", device="cpu", log=told.append)
    assert any("warning: --freeze-router without a trained network" in line for line in told)


def test_a_run_among_the_images_is_refused(folder, parent):
    """It would be a class of its own the next time."""
    with pytest.raises(ValueError, match=r"inside .* choose another --out"):
        finetune(options(folder, parent), folder / "runs" / "mine", device="cpu")
    assert not (folder / "runs").exists()


def test_a_network_that_is_sparse_already_keeps_its_experts(done, folder, tmp_path):
    """Options of experts that are there already are refused, with how to get more or fewer; no folder is left."""
    with pytest.raises(ValueError, match=r"num_experts=3, experts='full': .* is sparse already"):
        finetune(options(folder, done[0].run.path), tmp_path / "mine", device="cpu")
    source = str(done[0].run.path)
    more = r"num_experts=12: .* with 3 experts per layer, which do not change: `vismoe densify \S+ DENSE --data"
    with pytest.raises(ValueError, match=more):
        finetune(Options(str(folder), source, num_experts=12), tmp_path / "mine", device="cpu")
    with pytest.raises(ValueError, match=r"`vismoe densify … --num-experts 2` keeps that many of them; or "):
        finetune(Options(str(folder), source, num_experts=2), tmp_path / "mine", device="cpu")
    with pytest.raises(ValueError, match=r"num_experts=3: vmoe_nano_.* is sparse already.*: leave it out"):
        finetune(Options(str(folder), num_experts=3), tmp_path / "mine", device="cpu")
    assert not (tmp_path / "mine").exists()


def test_a_choice_that_fails_leaves_no_claim(tmp_path, folder, parent, monkeypatch):
    """What goes wrong before the training begins leaves the folder free for the next try."""

    def refuse(*arguments):
        raise ValueError("no list of blocks")

    monkeypatch.setattr(sys.modules["vismoe.adapt.classification.adaptation"], "freeze", refuse)
    with pytest.raises(ValueError, match="no list of blocks"):
        finetune(options(folder, parent), tmp_path / "mine", device="cpu")
    assert not (tmp_path / "mine").exists()


@pytest.fixture(scope="module")
def head_alone(folder, parent, tmp_path_factory, sketched):
    return finetune(options(folder, parent, train="head"), tmp_path_factory.mktemp("head") / "mine", device="cpu")


@pytest.mark.parametrize("left", ["report.json", "summary.json", "model"])
def test_a_head_alone_that_was_killed_goes_on(folder, parent, head_alone, tmp_path, left):
    """Killed after its recipe was written, also while a model was: the same command ends as it would have."""
    asked, whole = options(folder, parent, train="head"), head_alone.report
    shutil.copytree(head_alone.run.path, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / left) if left == "model" else (tmp_path / "mine" / left).unlink()
    (tmp_path / "mine" / "report.json").unlink(missing_ok=True)
    (tmp_path / "mine" / f".model.{'0' * 32}.new").mkdir()
    again = finetune(asked, tmp_path / "mine", device="cpu")
    assert again.report["test"] == whole["test"]
    assert [line["step"] for line in again.run.metrics] == [0]


def test_a_start_that_was_killed_goes_on(folder, parent, tmp_path):
    """Killed while the network to begin with was written, or the claim: the same command begins anew."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / f".initial.{'a' * 32}.new").mkdir()
    (path / ".finetune.json").write_text("{")
    asked = options(folder, parent, train="head")
    (path / "finetune.json").write_text(json.dumps(asdict(asked)))
    assert finetune(asked, path, device="cpu").report["test"]


def test_a_source_that_is_not_there_is_told_at_once(folder, tmp_path):
    """Before the images are looked at."""
    told = []
    with pytest.raises(FileNotFoundError, match="no such run or model folder"):
        finetune(options(folder, tmp_path / "nothing"), tmp_path / "mine", device="cpu", log=told.append)
    assert not told


def test_a_temperature_needs_images(done):
    """A dozen validation images fit none: it would follow chance. Output, report and card say so."""
    (found, told), number = done, done[0].report["images"]["validation"]
    assert number < 50
    assert found.report["temperature"] == 1.0
    note = (
        "no temperature is fitted, so probabilities may be too high or too low: there are "
        f"{number} validation images, and at least 50 are needed"
    )
    assert found.report["temperature_note"] == note
    assert note in told
    assert f"N{note[1:]}." in (found.run.path / "model" / "README.md").read_text()


def test_a_fitted_temperature_needs_no_note(tmp_path, parent):
    """With fifty validation images one is fitted, and nothing is said."""
    told = []
    asked = options(fill(tmp_path / "data", 110), parent, train="head")
    found = finetune(asked, tmp_path / "run", device="cpu", log=told.append)
    assert found.report["images"]["validation"] >= 50
    assert found.report["temperature_note"] is None
    assert not any("no temperature" in line for line in told)
