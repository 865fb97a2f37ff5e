"""pytest tests/test_evidence_matching.py: the second arm's loss, split and statistics, each by another way too."""

import math

import numpy as np
import pytest
import timm
import torch
from evidence import matching
from evidence.matching import (
    ARMS,
    KEY,
    RATES,
    RECALLS,
    SEEDS,
    Run,
    Tower,
    contrast,
    queue,
    recall,
    smallest_effect,
    split,
)
from torch.nn import functional as F

import vismoe

pytestmark = pytest.mark.benchmarks


def test_the_loss_is_that_of_clip_and_spares_twins():
    """Where all captions differ it is the mean of two cross-entropies; a picture with the same caption adds nothing to
    the denominators, as if it were not in the batch."""
    torch.manual_seed(0)
    pictures, vectors = (F.normalize(torch.randn(4, 6)) for _ in range(2))
    scale, all_apart = torch.tensor(1.5), torch.arange(4)
    logits = math.exp(1.5) * pictures @ vectors.T
    expected = -(logits.log_softmax(0).diag().mean() + logits.log_softmax(1).diag().mean()) / 2
    assert contrast(pictures, vectors, all_apart, scale) == pytest.approx(expected.item())
    # The twins are the last two: each one's own terms are those of the batch without the other.
    twins = contrast(pictures, vectors, torch.tensor([0, 1, 2, 2]), scale)
    logits = math.exp(1.5) * pictures @ vectors[[0, 1, 2, 2]].T
    terms = [-(logits.log_softmax(0)[i, i] + logits.log_softmax(1)[i, i]) / 2 for i in (0, 1)]
    for keep in ([0, 1, 2], [0, 1, 3]):
        alone = math.exp(1.5) * pictures[keep] @ vectors[:3].T
        terms.append(-(alone.log_softmax(0)[2, 2] + alone.log_softmax(1)[2, 2]) / 2)
    assert twins == pytest.approx((sum(terms) / 4).item())


def test_no_caption_is_in_two_parts():
    """Every picture is in one part, with its caption's own vector."""
    generator = np.random.default_rng(0)
    number, vectors = generator.integers(0, 50, 200), generator.normal(size=(50, 3)).astype(np.float32)
    parts = split(torch.from_numpy(number), torch.from_numpy(vectors))
    pictures = torch.cat([part.pictures for part in parts.values()])
    assert sorted(pictures.tolist()) == list(range(200))
    assert sum(len(part.vectors) for part in parts.values()) == 50
    captions = [{int(number[picture]) for picture in part.pictures} for part in parts.values()]
    assert not any(captions[i] & captions[j] for i in range(3) for j in range(i))
    for part in parts.values():
        assert torch.equal(part.vectors[part.caption], torch.from_numpy(vectors)[number[part.pictures]])


def test_recall_counts_any_picture_of_a_caption():
    """A network that gives each picture its caption's vector answers all; one that is one off, none."""
    number, vectors = np.repeat(np.arange(20), 3), np.eye(20, dtype=np.float32)
    part, views = split(torch.from_numpy(number), torch.from_numpy(vectors))["test"], vectors[number]
    found = recall(torch.nn.Identity(), part, views)
    assert all(hits.all() for hits in found.values())
    assert {name: len(hits) for name, hits in found.items()} == {
        "picture_to_caption": len(part.pictures),
        "caption_to_picture": len(part.vectors),
    }
    swapped = views.copy()
    swapped[part.pictures] = np.roll(vectors[number[part.pictures]], 3, 0)
    assert not any(hits.any() for hits in recall(torch.nn.Identity(), part, swapped).values())


def test_the_smallest_effect_is_found_four_times_in_five():
    """Against a simulation of McNemar's test."""
    queries, discordant = 2000, 0.2
    effect, generator = smallest_effect(queries, discordant), np.random.default_rng(0)
    shares = [(discordant + effect) / 2, (discordant - effect) / 2, 1 - discordant]
    better, worse, _ = generator.multinomial(queries, shares, 20000).T
    assert (np.abs(better - worse) / np.sqrt(better + worse) > 1.96).mean() == pytest.approx(0.8, abs=0.02)


def test_arms_are_compared_at_their_best_rates():
    """Of each arm that of the most answers in the pilots; the best at another rate for each of them here. Where it is
    the first or last one, pilots go on outwards, of that arm alone."""
    pilots = queue([])
    assert {(run.arm, run.rate) for run in pilots} == {(arm, rate) for arm in ARMS for rate in RATES}
    best = {arm: RATES[place % 3] for place, arm in enumerate(ARMS)}

    def row(run: Run) -> dict[str, str]:
        good = str(float(run.rate == best[run.arm]))
        return dict(zip(KEY, run.key, strict=True)) | {"picture_to_caption": good, "caption_to_picture": "0"}

    assert {run.stage for run in queue([row(run) for run in pilots[1:]])} == {"pilot"}
    further = queue([row(run) for run in pilots])
    beyond = {(arm, RATES[0] / 2) for arm in list(ARMS)[::3]} | {(list(ARMS)[2], RATES[2] * 2)}
    assert {(run.arm, run.rate) for run in further if run not in pilots} == beyond
    decisive = [run for run in queue([row(run) for run in further]) if run not in further]
    assert {(run.arm, run.rate, run.seed) for run in decisive} == {(a, best[a], s) for a in ARMS for s in SEEDS}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A ViT of 12 blocks, 32 wide."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=32, num_heads=2, img_size=32, num_classes=0)
    vismoe.save(model, tmp_path_factory.mktemp("parent") / "model")
    return tmp_path_factory.getbasetemp() / "parent0" / "model"


def test_every_arm_starts_as_the_same_network(parent):
    """What is compared differs by its experts alone, and a frozen arm trains its linear map and scale only."""
    torch.manual_seed(1)
    tokens, towers = torch.randn(2, 5, 32), {arm: Tower(parent, arm, 0).eval() for arm in ARMS}
    expected = towers["dense"](tokens)
    for tower in towers.values():
        torch.testing.assert_close(tower(tokens), expected)
    trained = [name for name, parameter in towers["frozen"].named_parameters() if parameter.requires_grad]
    assert trained == ["log_scale", "head.weight", "head.bias"]


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_learns_what_can_be_learned(arm, parent, tmp_path, monkeypatch):
    """Pictures whose tokens say their caption are found again after training, and a run is the same each time."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    number = np.repeat(np.arange(60), 8)
    views = (3 * vectors[number][:, None] + generator.normal(size=(480, 5, 32))).astype(np.float16)
    monkeypatch.setattr(matching, "captions", lambda root: (number, vectors))
    monkeypatch.setattr(matching, "tokens", lambda view, parent, root: views)
    monkeypatch.setattr(matching, "RESULTS", tmp_path)
    monkeypatch.setattr(matching, "BATCH", 12)
    monkeypatch.setattr(matching, "EPOCHS", 4)
    run = Run("decisive", arm, 3e-3)
    row = matching.train_one(run, parent, tmp_path)
    assert row["steps"] == 4 * (336 // 12)
    least = 2 if arm == "frozen" else 4
    assert all(row[name] > least / 12 for name in RECALLS), row  # of twelve captions
    hits = np.load(tmp_path / "evidence_matching" / f"{run.name}.npz")
    assert {name: round(float(hits[name].mean()), 5) for name in RECALLS} == {name: row[name] for name in RECALLS}
    again = matching.train_one(run, parent, tmp_path)
    assert {**again, "cpu_seconds": 0} == {**row, "cpu_seconds": 0}
