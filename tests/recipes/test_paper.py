"""pytest tests/recipes/test_paper.py: the paper's recipes, scaled down, train."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vismoe import load
from vismoe.data import open_data
from vismoe.recipes import RECIPES
from vismoe.tasks import Classification
from vismoe.training import fit
from vismoe.training.schedule import learning_rate
from vismoe.training.state import build
from vismoe.vit import PRESETS
from vismoe.weights import create_model, take_over

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
UPSTREAM = {"s32": 1e-3, "b32": 8e-4, "b16": 8e-4, "l32": 6e-4, "l16": 4e-4, "h14": 3e-4}


def scaled_down(name, data, **changes):
    """A paper's recipe of two steps of eight images of two patches a side, in a network of its kind."""
    recipe = RECIPES[name]()
    patch = PRESETS[recipe.model].arguments["patch_size"]
    options = dict(recipe.model_options) | SMALL | {"group_size": 8 * 5, "num_experts": 4}
    fields = {
        "image_size": 2 * patch,
        "model_options": tuple(options.items()),
        "data": str(data),
        "steps": 2,
        "batch_size": 8,
        "device": "cpu",
    }
    return replace(recipe, **fields | changes)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Sixteen images of noise with one or two of three classes each."""
    place, random = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    lines = ["file_name,label"]
    for number in range(16):
        Image.fromarray(random.integers(0, 255, (70, 70, 3), np.uint8)).save(place / f"{number}.png")
        lines.append(f"{number}.png,{('a', 'b', 'a|c', 'c')[number % 4]}")
    (place / "metadata.csv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Sixteen images of noise of two classes."""
    place, random = tmp_path_factory.mktemp("one"), np.random.default_rng(1)
    for number in range(32):
        (place / "ab"[number % 2]).mkdir(exist_ok=True)
        image = Image.fromarray(random.integers(0, 255, (70, 70, 3), np.uint8))
        image.save(place / "ab"[number % 2] / f"{number}.png")
    return place


@pytest.mark.parametrize("size", UPSTREAM)
def test_upstream_trains(size, several, tmp_path):
    """Two steps on images of several classes: warm-up, decay of all parameters, losses of the routers, no NaN; the
    classifier's bias began at −log(classes). At its own size it has the published rate and clips only H."""
    recipe = RECIPES[f"paper_{size}"]()
    assert learning_rate(recipe, 10_000) == UPSTREAM[size]
    assert learning_rate(recipe, 5_000) == UPSTREAM[size] / 2
    assert learning_rate(recipe, recipe.steps) == pytest.approx(1e-5)
    assert recipe.clip_norm == (10 if size == "h14" else 0)
    run = fit(scaled_down(f"paper_{size}", several), tmp_path / "run")
    assert run.summary["skipped_steps"] == 0
    network = run.load_model()
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    router = network.blocks[1].mlp.router
    assert (router.balance, router.k, router.noise_std, router.capacity_factor) == ("loss", 2, 1.0, 1.05)
    assert router.loss_weights["importance"] == router.loss_weights["load"] == 0.005
    begun = build(run.recipe, open_data(str(several))).head
    assert torch.equal(begun.bias, torch.full((3,), -np.log(3).item()))
    assert not begun.weight.any()


def test_fine_tuning_trains(several, one, tmp_path):
    """From a network of the upstream recipe, at twice the size, on other classes, with capacity 1.5 and without the
    tanh layer: the trunk is the parent's, positions between the parent's, the classifier new."""
    parent = fit(scaled_down("paper_s32", several), tmp_path / "parent")
    wider = {"weights": str(parent.path), "image_size": 128}
    recipe = scaled_down("paper_finetune", one, **wider)
    options = tuple((dict(recipe.model_options) | {"group_size": 8 * 17}).items())
    recipe = replace(recipe, model_options=options)
    begun, old = build(recipe, open_data(str(one))), parent.load_model()
    assert torch.equal(begun.blocks[1].mlp.experts.up.weight, old.blocks[1].mlp.experts.up.weight)
    assert torch.equal(begun.pos_embed[:, [0, 1, 4, 13, 16]], old.pos_embed[:, [0, 1, 2, 3, 4]])
    assert begun.head.weight.shape == (2, 32)
    assert begun.blocks[1].mlp.router.capacity_factor == 1.5
    run = fit(recipe, tmp_path / "run")
    assert run.summary["skipped_steps"] == 0
    assert "top1" in run.summary
    published = RECIPES["paper_finetune"]()
    assert [learning_rate(published, done) for done in (250, 500, 10_000)] == pytest.approx([1.5e-3, 3e-3, 1e-5])


def test_weights_of_another_network_are_refused(several, tmp_path):
    """Said with the names of what differs, before anything is written."""
    parent = fit(scaled_down("paper_s32", several), tmp_path / "parent")
    other = scaled_down("paper_s32", several, weights=str(parent.path))
    options = tuple((dict(other.model_options) | {"depth": 6}).items())
    with pytest.raises(ValueError, match=r"parent has another network than the recipe: they differ in blocks\.4"):
        fit(replace(other, model_options=options), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="nowhere: no such run or model folder"):
        fit(replace(other, weights="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_taking_over_changes_no_answer():
    """To the same classes and size, with the classifier besides, the network is the other one."""
    torch.manual_seed(0)
    name, images = "vmoe_pico_patch2_8_every2_e8", torch.randn(2, 1, 8, 8)
    trained, model = (create_model(name, num_classes=3, in_chans=1).eval() for _ in range(2))
    torch.nn.init.normal_(trained.head.weight)
    take_over(model, trained, "trained")
    assert not torch.equal(model(images), trained(images))
    model.head.load_state_dict(trained.head.state_dict())
    assert torch.equal(model(images), trained(images))


def test_the_sigmoid_loss_is_summed_over_classes(one, tmp_path, monkeypatch):
    """Of one class an image: Σ over classes of each one's cross-entropy, mean over images, by hand."""
    seen, plain = [], Classification.loss

    def watched(task, logits, batch):
        loss = plain(task, logits, batch)
        seen.append((loss, logits, batch["target"]))
        return loss

    monkeypatch.setattr(Classification, "loss", watched)
    run = fit(scaled_down("paper_s32", one), tmp_path / "run")
    loss, logits, targets = seen[0]
    shown = F.one_hot(targets, 2)
    by_hand = -(shown * F.logsigmoid(logits) + (1 - shown) * F.logsigmoid(-logits)).sum(1).mean()
    torch.testing.assert_close(loss, by_hand)
    assert load(run.path).num_classes == 2
