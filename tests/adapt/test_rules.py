"""pytest tests/adapt/test_rules.py: what finetune chooses by itself, and that it says why."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vismoe
from vismoe.adapt import Options, budget, finetune
from vismoe.adapt.classification import rules
from vismoe.adapt.classification.initial_model import initial_model
from vismoe.adapt.classification.rules import (
    Work,
    choose,
    choose_image_size,
    is_better,
    larger_image_size,
    scratch_preset,
)
from vismoe.adapt.splits import open_splits
from vismoe.data import check_batch_size
from vismoe.inference import evaluate
from vismoe.vit import cost

from .small import small_vit

CPU = torch.device("cpu")


def network(size=32):
    return small_vit(size, depth=3)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return str(vismoe.save(network(), tmp_path_factory.mktemp("parent") / "model"))


@pytest.fixture(scope="module")
def detail(tmp_path_factory):
    """Two classes, 32 pixels: upright and lying stripes of one pixel, which are the same grey at 16 pixels."""
    folder, random = tmp_path_factory.mktemp("sets") / "detail", np.random.default_rng(0)
    for axis, name in enumerate(("lying", "upright")):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            values = 100 + 60 * (np.indices((32, 32))[axis] % 2) + random.integers(0, 40, (32, 32))
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("image_side", "larger"),
    [(28, None), (16, None), (100, None), (112, None), (118, None), (130, 128), (300, 224), (213, 208), (4000, 224)],
)
def test_the_larger_size_is_that_of_the_images(image_side, larger):
    """A multiple of the patch size, at most twice the first, and none where the images have no more to show."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=448)
    first = choose_image_size(model, CPU)
    assert (first, larger_image_size(model, first, image_side)) == (112, larger)


def test_sizes_of_a_network_with_a_convolutional_stem():
    """Multiples of what its tokens stand for, 16 pixels, as for any other network."""
    model = vismoe.create_model("vmoe_nano_patch16_128_dense")
    first = choose_image_size(model, CPU)
    assert first == 112
    assert [larger_image_size(model, first, side) for side in (100, 120, 127, 4000)] == [None, None, None, 128]


def test_a_network_of_one_size_keeps_it():
    model = network()
    model.resizable = False
    assert choose_image_size(model, CPU) == 32
    assert larger_image_size(model, 32, 300) is None


def test_by_more_than_chance_explains():
    """Nine images gained and one lost are more than the root of ten; six and four are not; nothing is not."""
    right = torch.tensor([True] * 9 + [False] + [True] * 5)
    assert is_better(right, torch.tensor([False] * 9 + [True] + [True] * 5))
    assert not is_better(torch.tensor([True] * 6 + [False] * 4), torch.tensor([False] * 6 + [True] * 4))
    assert not is_better(right, right)


@pytest.mark.parametrize(
    ("budget", "size", "said"),
    [
        (1e13, 32, "at 32: better by more than one standard error"),
        (5e7, 16, "32 pixels allow 0.0 epochs, and at least 4 are needed"),
    ],
)
def test_the_size_at_which_a_linear_classifier_sees_more(monkeypatch, tmp_path, detail, parent, budget, size, said):
    """Classes that differ in detail alone are trained on at the images' size, where there is time for it; which of both
    it is, is said with the figures."""
    monkeypatch.setattr(rules, "CPU_IMAGE", 16)
    monkeypatch.setattr(rules, "BUDGET", dict.fromkeys(rules.BUDGET, budget))
    lines = []
    found = finetune(Options(detail, parent, epochs=1), tmp_path / "run", device="cpu", log=lines.append)
    assert found.run.load_model().pretrained_cfg["input_size"] == (3, size, size)
    assert any(said in line for line in lines)


def test_a_size_that_is_asked_for_is_kept(monkeypatch, tmp_path, detail, parent):
    monkeypatch.setattr(rules, "CPU_IMAGE", 16)
    lines = []
    model, _ = initial_model(
        Options(detail, parent, image_size=24), open_splits(detail, 0, 0.1), tmp_path, CPU, 0, lines.append
    )
    assert model.pretrained_cfg["input_size"] == (3, 24, 24)
    assert not lines


def test_the_fitted_classifier_is_not_too_sure(monkeypatch, tmp_path, detail, parent):
    """Training begins at it: a higher temperature has no lower loss on the validation split."""
    monkeypatch.setattr("vismoe.adapt.classification.initial_model.ENOUGH", 2)
    splits = open_splits(detail, 0, 0.1)
    model, probe = initial_model(Options(detail, parent), splits, tmp_path, CPU, 0, print)
    scores, labels = (found := evaluate(model, splits.fitting.val)).scores, found.labels
    assert found.score == probe["validation"]
    softer, own = (torch.nn.functional.cross_entropy(scores * factor, labels).item() for factor in (0.8, 1.0))
    assert own <= softer


def test_the_time_of_everything_is_counted(parent, detail):
    """Features, evaluations and the test are part of the budget; on a GPU there is none."""
    model, splits = network(), open_splits(detail, 0, 0.1)
    forward = cost(model, (3, 32, 32)).macs
    train, validation, test = len(splits.fitting.train_and_val[0]), len(splits.fitting.val), len(splits.test.val)
    work = Work.of(model, splits, 1 / 3, trained=True)
    assert work.fixed == forward * (train + 2 * (validation + test))
    assert work.image == pytest.approx(forward * (5 / 3 + validation / train))
    assert work.affordable(torch.device("cuda"), "float32") == math.inf
    assert work.affordable(CPU, "float32") == pytest.approx((rules.BUDGET["float32"] - work.fixed) / work.image)


@pytest.mark.parametrize(("image_size", "trained"), [(16, "last-third"), (32, "head")])
def test_nothing_is_trained_where_nothing_is_wrong(monkeypatch, tmp_path, detail, parent, image_size, trained):
    """At 32 pixels the linear classifier has no error on the validation split, at 16 it has."""
    monkeypatch.setattr(sys.modules["vismoe.adapt.classification.adaptation"], "ENOUGH", 2)
    lines = []
    found = finetune(
        Options(detail, parent, image_size=image_size, epochs=1), tmp_path / "run", device="cpu", log=lines.append
    )
    assert any("no improvement can be measured" in line for line in lines) == (trained == "head")
    assert any("training last-third" in line for line in lines) == (trained == "last-third")
    assert (found.report["probe"]["validation"] == 1.0) == (trained == "head")


@pytest.mark.parametrize(("steps", "rate"), [(10, 2e-4 * 10 / 120), (238, 2e-4)])
def test_short_trainings_have_lower_rates(parent, detail, steps, rate):
    options = Options(detail, parent, epochs=round(steps * 32 / 76))
    recipe = choose(options, network(), open_splits(detail, 0, 0.1), CPU, 1 / 3).recipe
    assert (recipe.steps, recipe.learning_rate) == (steps, pytest.approx(rate))
    asked = replace(options, learning_rate=0.5)
    assert choose(asked, network(), open_splits(detail, 0, 0.1), CPU, 1 / 3).recipe.learning_rate == 0.5


@pytest.mark.parametrize(
    ("batch", "free", "steps"), [(32, 960, 1), (32, 959, 2), (32, 250, 4), (24, 1, 8), (7, 1, 1), (1, 1, 1)]
)
def test_a_batch_is_divided_until_it_fits(monkeypatch, batch, free, steps):
    """Ten bytes an image, in a third of the free memory; micro-batches have equal sizes."""
    monkeypatch.setattr(budget, "free_memory", lambda device: free)
    assert budget.accumulation_steps(batch, 10, CPU) == steps


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_can_share_the_chosen_batch(parent, detail, processes):
    """It is a multiple of two images per process, and with one process as large as ever."""
    splits = open_splits(detail, 0, 0.1)
    for source in (parent, None):
        alone = choose(Options(detail, source), network(), splits, CPU, 1 / 3).recipe
        recipe = choose(Options(detail, source), network(), splits, CPU, 1 / 3, processes).recipe
        check_batch_size(recipe.batch_size, processes)
        assert 0 <= alone.batch_size - recipe.batch_size < 2 * processes


@pytest.mark.parametrize(
    ("epochs", "told"), [(1, "3 steps of 32 images (1 epoch)"), (5, "12 steps of 32 images (5 epochs)")]
)
def test_the_epochs_that_were_asked_for_are_told(parent, detail, epochs, told):
    """Although the last epoch's last batch is a whole one. If a CPU's limit sets their number, the limit is told."""
    splits = open_splits(detail, 0, 0.1)
    assert told in choose(Options(detail, parent, epochs=epochs), network(), splits, CPU, 1 / 3).reasons
    model = network()
    work = Work.of(model, splits, 1 / 3, trained=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "BUDGET", {"float32": work.fixed + 100 * work.image})
        reasons = choose(Options(detail, parent, dtype="float32"), model, splits, CPU, 1 / 3).reasons
    assert any(reason.startswith("3 steps of 32 images (1.3 epochs, the limit of ") for reason in reasons)


@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(4, 10, 3), (100, 238, 50), (1000, 2375, 237)])
def test_the_warm_up_of_a_trained_network(parent, detail, epochs, steps, warmup):
    """Fifty steps or a tenth, but at most a third of all: Adam's first steps do not destroy the linear classifier."""
    options = Options(detail, parent, epochs=epochs)
    recipe = choose(options, network(), open_splits(detail, 0, 0.1), CPU, 1 / 3).recipe
    assert (recipe.steps, recipe.warmup_steps) == (steps, warmup)


@pytest.mark.parametrize(
    ("image_side", "asked", "patch", "size"),
    [
        (28, None, 4, 28),
        (32, None, 4, 32),
        (33, None, 4, 32),
        (50, None, 8, 48),
        (64, None, 8, 64),
        (94, None, 16, 96),
        (213, None, 16, 128),
        (4000, None, 16, 128),
        (1, None, 4, 4),
        (28, 64, 8, 64),
        (4000, 36, 4, 36),
        (28, 224, 16, 224),
    ],
)
def test_from_scratch_the_size_is_that_of_the_images(image_side, asked, patch, size):
    """As near as eight patches a side allow, and a preset whose patches fit; a size that is asked for is kept."""
    name, found = scratch_preset(image_side, asked, sparse=False)
    model = vismoe.create_model(name, num_classes=2, img_size=found)
    assert (found, model.patch_embed.num_patches) == (size, (size // patch) ** 2)
