"""finetune on a folder with boxes trains a detector.

python -m pytest tests/adapt/test_detection.py
"""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

import vismoe
from tests.detection.scenes import write_scenes
from vismoe.adapt import Options, finetune
from vismoe.adapt.detection import rules
from vismoe.adapt.detection.kept import keep_tokens
from vismoe.adapt.detection.outcome import result_lines
from vismoe.adapt.freezing import experts_are_equal
from vismoe.data import open_data
from vismoe.data.batches import Samples
from vismoe.detection import Detector, make_detector
from vismoe.moe import MoE
from vismoe.tasks import Detection
from vismoe.training import TrainingStoppedError
from vismoe.training.loop import balance
from vismoe.weights import data_config

from .small import options as small_options
from .small import small_vit


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set")


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return vismoe.save(small_vit(32), tmp_path_factory.mktemp("parent") / "model")


options = partial(small_options, image_size=48, batch_size=4)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """One evaluation a training, and one batch on which the averaged experts are balanced before it."""
    monkeypatch.setattr(rules, "EVALUATIONS", 1)
    monkeypatch.setattr(balance, "REBALANCE_BATCHES", 1)


def test_from_scratch(scenes, tmp_path):
    lines = []
    done = finetune(options(scenes, sparse=True, epochs=1), tmp_path / "run", device="cpu", log=lines.append)
    network = vismoe.load(tmp_path / "run")
    assert isinstance(network, Detector)
    assert network.pretrained_cfg["label_names"] == ["red", "blue"]
    assert network.moe.num_experts == 8
    assert "input of 32 × 48 pixels, as given" in lines
    assert "training the whole network" in "\n".join(lines)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["score"] == "map"
    test = open_data(str(scenes)).val
    assert done.report["test"] == pytest.approx(vismoe.evaluate(network, test).metrics, abs=1e-6, nan_ok=True)
    assert report["images"] == {"train": 9, "validation": 3, "test": 5}
    split = done.run.read("split.json")
    assert sorted(split["test"]) == sorted(test.files)
    assert Counter(split["files"].values()) == report["images"]
    assert done.lines[0].startswith(f"test split: mAP {done.report['test']['map']:.4f}")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"classes.csv", "false_positives.png", "curves.png", "routing.png", "model"}
    assert not files & {"kept", "initial", "checkpoints"}
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card
    assert "A detector of 2 classes" in card
    with torch.no_grad():
        (prediction,) = vismoe.predict(network, scenes / "images" / "val" / "0.png")
    assert prediction.size == test.image(0).size[::-1]


def test_from_a_trained_network_the_frozen_blocks_run_once(scenes, parent, tmp_path):
    lines = []
    finetune(options(scenes, source=parent, num_experts=4), tmp_path / "run", device="cpu", log=lines.append)
    text = "\n".join(lines)
    assert "training the last 2 of 4 blocks" in text
    assert "the first 2 blocks are not trained: they run once, for 2 augmented views" in text
    network, trunk = vismoe.load(tmp_path / "run"), vismoe.load(parent)
    assert network.moe.moe_layers == "2,3"
    for name in ("blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.weight"):
        assert torch.equal(network.trunk.state_dict()[name], trunk.state_dict()[name])
    assert not torch.equal(network.trunk.blocks[3].attn.qkv.weight, trunk.blocks[3].attn.qkv.weight)


def test_kept_tokens_stand_for_the_images(scenes, parent, tmp_path):
    """The outputs are those of the images, but for tokens in bfloat16; each view has its boxes."""
    data = open_data(str(scenes))
    network = make_detector(vismoe.load(parent), 2, (48, 64)).eval()
    task, config = Detection(data.classes), data_config(network)
    transforms = task.training_transform(config, {}), task.evaluation_transform(config)
    kept = keep_tokens(network, 2, data, transforms, 2, 0, torch.float32, tmp_path, "", print)
    assert len(kept.train) == 2 * len(data.train)
    samples = [kept.val.sample(index) for index in range(3)]
    with torch.no_grad():
        found = task.forward(network, task.collate(samples))
        expected = task.forward(network, task.collate([transforms[1](data.val.sample(index)) for index in range(3)]))
    for one, other in zip(found, expected, strict=True):
        assert one.size == other.size
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, rtol=0.05, atol=1e-3)
    images = len(data.train)
    assert not torch.equal(kept.train.sample(0)["tokens"], kept.train.sample(images)["tokens"])
    views = Samples(data.train, transforms[0], 0)
    for index in (0, 5, images):
        view, image = kept.train.sample(index), views[divmod(index, images)]
        for name in ("boxes", "classes", "ignored", "mask", "size", "scale", "label"):
            assert torch.equal(view[name], image[name]), name


def test_one_image_is_no_plural():
    """In the line about the test split."""
    rates = {"map": 0.5, "map50": 0.75}
    (line, _) = result_lines({"test": rates, "images": {"test": 1}, "classes": []})
    assert line == "test split: mAP 0.5000, AP50 0.7500 on 1 image"


@pytest.mark.parametrize("source", [pytest.param(None, marks=pytest.mark.slow), "parent"])
def test_a_stopped_run_ends_bit_equal(scenes, parent, tmp_path, monkeypatch, source):
    monkeypatch.setattr(rules, "EVALUATIONS", 2)
    given = options(scenes, source and parent, sparse=True)
    finetune(given, tmp_path / "whole", device="cpu")

    def stop(status):
        if status.step >= 3:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, TrainingStoppedError)):
        finetune(given, tmp_path / "stopped", device="cpu", on_status=stop)
    lines = []
    finetune(given, tmp_path / "stopped", device="cpu", log=lines.append)
    assert any(line.startswith("resuming after step") for line in lines)
    whole, again = (vismoe.load(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
def test_a_detector_is_trained_further(scenes, tmp_path):
    """From its own weights, on the same split: a training that changes nothing ends with the same detector."""
    first = finetune(options(scenes, epochs=1), tmp_path / "first", device="cpu")
    lines = []
    given = options(scenes, image_size=None, source=first.run.path, epochs=1, learning_rate=1e-9, train="all")
    finetune(given, tmp_path / "second", device="cpu", log=lines.append)
    before, after = (vismoe.load(tmp_path / name).state_dict() for name in ("first", "second"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)
    assert any("the split is that of" in line for line in lines)
    assert any(line.startswith("input of") and line.endswith(str(first.run.path)) for line in lines)


@pytest.mark.slow
def test_a_detector_keeps_what_it_knows_of_shared_classes(scenes, tmp_path):
    """With other classes only the layer that scores them changes; --image-size changes the input."""
    first = finetune(options(scenes, epochs=1), tmp_path / "first", device="cpu")
    other = write_scenes(tmp_path / "other")
    (other / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [green, red]\n")
    for path in other.glob("labels/*/*.txt"):  # what was red, number 0, is number 1 now
        path.write_text("".join(f"{1 - int(line[0])}{line[1:]}\n" for line in path.read_text().splitlines()))
    lines = []
    given = options(other, image_size=64, source=first.run.path, epochs=1, learning_rate=1e-9)
    finetune(given, tmp_path / "second", device="cpu", log=lines.append)
    assert f"classes of {first.run.path} that are kept: red; new classes: green" in lines
    before, after = vismoe.load(tmp_path / "first"), vismoe.load(tmp_path / "second")
    assert max(after.img_size) == 64
    torch.testing.assert_close(after.head.centre.weight[1], before.head.centre.weight[0])
    torch.testing.assert_close(after.head.box.weight, before.head.box.weight)


def test_kept_tokens_of_something_else_are_made_anew(scenes, parent, tmp_path):
    data = open_data(str(scenes))
    network = make_detector(vismoe.load(parent), 2, (48, 64)).eval()
    task, config = Detection(data.classes), data_config(network)
    transforms = task.training_transform(config, {}), task.evaluation_transform(config)
    few = replace(data, train=data.train.subset(range(4)))
    whole = keep_tokens(network, 2, data, transforms, 2, 0, torch.float32, tmp_path, "all", print)
    second_view = whole.train.sample(len(data.train))["tokens"]
    kept = keep_tokens(network, 2, few, transforms, 2, 0, torch.float32, tmp_path, "few", print)
    assert len(kept.train) == 8
    assert torch.equal(kept.train.sample(4)["tokens"], second_view)


def test_a_validation_split_without_objects_keeps_the_last_weights(tmp_path):
    folder = write_scenes(tmp_path / "set")
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        (folder / kind / "val").rename(folder / kind / "test")
        (folder / kind / "val").mkdir()
        assert list((folder / kind / "test").glob(f"*.{suffix}"))
    for number in range(3):
        image = Image.effect_noise((48, 40), 40 + 60 * number)
        image.convert("RGB").save(folder / "images" / "val" / f"{number}.png")
        (folder / "labels" / "val" / f"{number}.txt").touch()
    (folder / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: [red, blue]\n"
    )
    lines, statuses = [], []
    done = finetune(options(folder), tmp_path / "run", device="cpu", log=lines.append, on_status=statuses.append)
    assert any(line.startswith("note: no validation image has an object") for line in lines)
    assert any(" validation (not used for selection), " in line for line in lines)
    assert {status.score_split for status in statuses} == {"validation"}
    assert done.report["validation"] is None
    assert done.run.recipe.keep == "last"


@pytest.mark.parametrize(
    "part", ["head", *(pytest.param(name, marks=pytest.mark.slow) for name in ("experts", "last-third", "all"))]
)
def test_every_part_can_be_trained(scenes, parent, tmp_path, part):
    sparse = part == "experts"
    given = options(scenes, source=parent, train=part, sparse=sparse or None, epochs=1)
    done = finetune(given, tmp_path / "run", device="cpu")
    assert done.report["trained"] == part
    network, trunk = vismoe.load(tmp_path / "run"), vismoe.load(parent).state_dict()
    shared = {name: value for name, value in network.trunk.blocks.named_parameters() if f"blocks.{name}" in trunk}
    changed = {int(name[0]) for name, value in shared.items() if not torch.equal(value, trunk[f"blocks.{name}"])}
    assert changed == {"last-third": {2, 3}, "all": {0, 1, 2, 3}}.get(part, set())
    assert any(isinstance(module, MoE) for module in network.modules()) == sparse
    assert not experts_are_equal(network)
    assert not torch.equal(network.head.box.bias, torch.zeros(5))


def test_the_input_has_the_shape_of_the_images(scenes):
    """And small objects get a few cells, within the limits of a CPU."""
    from vismoe.adapt.splits import open_splits

    splits = open_splits(str(scenes), 0, 0.1)
    cpu = torch.device("cpu")
    chosen = rules.choose_size(Options(str(scenes)), splits, (16, 16), cpu)
    assert max(chosen.height, chosen.width) == 160
    width, height = splits.summary["width"]["median"], splits.summary["height"]["median"]
    assert chosen.width / chosen.height == pytest.approx(width / height, rel=0.1)
    given = rules.choose_size(Options(str(scenes), image_size=320), splits, (16, 16), cpu)
    assert max(given.height, given.width) == 320
    assert "as given" in given.reason


@pytest.mark.slow
def test_a_set_of_one_class_is_enough(tmp_path):
    folder = write_scenes(tmp_path / "set")
    for path in folder.glob("labels/*/*.txt"):
        path.write_text("".join(f"0{line[1:]}\n" for line in path.read_text().splitlines()))
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    finetune(options(folder, epochs=1), tmp_path / "run", device="cpu")
    assert vismoe.load(tmp_path / "run").num_classes == 1


def test_options_that_do_not_fit(scenes, tmp_path):
    with pytest.raises(ValueError, match=r"num_experts=4: .* is sparse already"):
        finetune(options(scenes, source="vmoe_pico_patch4_28_every2_e8", num_experts=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"class_weights=0\.5: a detector has none"):
        finetune(options(scenes, class_weights=0.5), tmp_path / "run")
    assert not (tmp_path / "run").exists()
