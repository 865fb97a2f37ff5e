"""pytest tests/data/test_grouped_split.py: no copy of what is trained on is held out."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from vismoe.data import grouped_split

quick = settings(max_examples=30, deadline=None, derandomize=True)


def sides(labels, groups, seed, share=0.25):
    """Both sides, after what must hold for every set: each image on one, each group on one, in order."""
    train, val = grouped_split(labels, groups, seed, share)
    assert sorted(train + val) == list(range(len(groups)))
    assert (train, val) == (sorted(train), sorted(val))
    assert not {groups[index] for index in train} & {groups[index] for index in val}
    assert grouped_split(labels, groups, seed, share) == (train, val)
    return train, val


pure = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=12), min_size=1, max_size=5).filter(
    lambda classes: any(len(sizes) > 1 for sizes in classes)
)


@quick
@given(pure, st.integers(0, 2**40), st.sampled_from([0.1, 0.25, 0.5]), st.randoms(use_true_random=False))
def test_groups_of_one_class_each(classes, seed, share, random):
    """A class of several groups is on both sides, one of a single group trained on; what is held out misses the
    share by half the largest group at most, or is the smallest group."""
    images = [
        (label, (label, n)) for label, sizes in enumerate(classes) for n, size in enumerate(sizes) for _ in range(size)
    ]
    random.shuffle(images)
    number = {group: place for place, group in enumerate(sorted({group for _, group in images}))}
    labels = torch.tensor([label for label, _ in images])
    _, val = sides(labels, [number[group] for _, group in images], seed, share)
    held = labels[val].bincount(minlength=len(classes)).tolist()
    for sizes, out in zip(classes, held, strict=True):
        if len(sizes) == 1:
            assert out == 0
        else:
            assert 0 < out < sum(sizes)
            assert abs(out - share * sum(sizes)) <= max(max(sizes) / 2, min(sizes)) + 1e-9


mixed = st.lists(st.tuples(st.sets(st.integers(0, 3), max_size=3), st.integers(0, 9)), min_size=2, max_size=24)


@quick
@given(mixed, st.integers(0, 2**40))
def test_several_labels(images, seed):
    """Every label is trained on; one of two groups or more that is not held out could not be: each of its groups holds
    all images of some label that are trained on."""
    labels = torch.zeros(len(images), 4, dtype=torch.bool)
    for row, (names, _) in enumerate(images):
        labels[row, list(names)] = True
    groups = [group for _, group in images]
    of = defaultdict(set)
    for names, group in images:
        for name in names or {-1}:
            of[name].add(group)
    try:
        train, val = sides(labels, groups, seed)
    except ValueError:
        assert next(possible(of), None) is None
        return
    trained = Counter(name for index in train for name in images[index][0] or {-1})
    assert set(trained) == set(of)
    inside = defaultdict(Counter)
    for names, group in images:
        inside[group].update(names or {-1})
    held = {groups[index] for index in val}
    for its in of.values():
        if len(its) > 1 and not its & held:
            assert all(any(trained[other] == inside[group][other] for other in inside[group]) for group in its)


def possible(of):
    """Ways to hold out groups so that every label is trained on, by trying all."""
    groups = sorted(set().union(*of.values()))
    for size in range(1, len(groups)):
        for out in itertools.combinations(groups, size):
            if all(its - set(out) for its in of.values()):
                yield out


def test_as_many_classes_are_held_out_as_can_be():
    """Against all 1,024 splits of ten groups that hold one to three of six classes."""
    missed = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        of = defaultdict(set)
        rows = [generator.choice(6, generator.integers(1, 4), replace=False).tolist() for _ in range(10)]
        labels = torch.zeros(10, 6, dtype=torch.bool)
        for group, names in enumerate(rows):
            labels[group, names] = True
            for name in names:
                of[name].add(group)
        best = max(sum(bool(its & set(out)) for its in of.values()) for out in possible(of))
        _, val = sides(labels, list(range(10)), seed)
        reached = sum(bool(its & set(val)) for its in of.values())
        missed += best - reached
    assert missed <= 2


def test_shares_are_as_even_as_those_of_scikit_learn():
    """Ten sets of 400 images in 150 groups, against StratifiedGroupKFold of four parts: the mean distance of a
    class's held-out share from a quarter is no larger."""
    ours, theirs = [], []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        groups = generator.integers(0, 150, 400)
        labels = generator.choice(5, 150, p=[0.4, 0.3, 0.15, 0.1, 0.05])[groups]
        folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        for val, into in (
            (sides(torch.from_numpy(labels), groups.tolist(), seed)[1], ours),
            (next(folds.split(labels, labels, groups))[1], theirs),
        ):
            share = np.bincount(labels[val], minlength=5) / np.bincount(labels, minlength=5)
            into.append(np.abs(share - 0.25).mean())
    assert np.mean(ours) <= np.mean(theirs)
    assert np.mean(ours) < 0.02


def test_without_duplicates_a_quarter_of_each_class():
    """To the nearest image, as `split` holds out."""
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 8 + [3] * 2 + [4])
    _, val = sides(labels, list(range(71)), 0)
    assert labels[val].bincount(minlength=5).tolist() == [10, 5, 2, 1, 0]


def test_the_seed_decides():
    """No two of seven seeds hold out the same."""
    labels = torch.tensor([0, 1] * 20)
    assert len({tuple(grouped_split(labels, list(range(40)), seed)[1]) for seed in range(7)}) == 7


def test_a_rare_label_is_held_out_before_a_common_one():
    """Of labels that come together, the rarest decides: a quarter of the eight that show a cat, of those without any
    label too."""
    labels = torch.zeros(120, 3, dtype=torch.bool)
    labels[:100, 0] = True
    labels[:8, 1] = True
    _, val = sides(labels, list(range(120)), 1)
    assert labels[val].sum(0).tolist() == [25, 2, 0]
    assert (~labels[val].any(1)).sum() == 5


@pytest.mark.parametrize(
    ("groups", "share", "reason"),
    [
        ([0, 0, 1, 1], 0.25, "no class has two images that"),
        ([0], 0.25, "1 groups for 4"),
        ([0, 1, 2, 3], 1.0, "share=1"),
    ],
)
def test_what_cannot_be_split_is_an_error(groups, share, reason):
    """Nothing is held out, or nothing left, in silence."""
    with pytest.raises(ValueError, match=reason):
        grouped_split(torch.tensor([0, 0, 1, 1]), groups, 0, share)
