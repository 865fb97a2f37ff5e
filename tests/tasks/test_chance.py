"""pytest tests/tasks/test_chance.py: a useless model is told, and groups below the rest by more than chance."""

import re
from itertools import pairwise

import pytest
import torch
from scipy.stats import fisher_exact
from torch.nn.functional import one_hot

from vismoe.tasks import ClassEvaluation, by_group, group_lines

CLASSES = ["cat", "dog", "owl"]


def evaluation(labels, scores):
    return ClassEvaluation({"top1": 0.5}, 1.0, {}, CLASSES, [], labels, scores.float())


def answering(labels, answers):
    return evaluation(torch.tensor(labels), one_hot(torch.tensor(answers), 3))


@pytest.mark.parametrize(
    ("labels", "answers", "said"),
    [
        ([0] * 20 + [1] * 20, [1] * 40, "the model answers 'dog' for every image"),
        (
            [0] * 20 + [1] * 20,
            [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10,
            "not significantly better than always answering 'cat'",
        ),
        (
            [0] * 90 + [1] * 10,
            [0] * 87 + [1] * 3 + [1] * 6 + [0] * 4,
            "right on 93 of 100 images, and always answering the same on 90",
        ),
        ([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], "6 images, 3 of them of other classes, are too few"),
        ([0] * 20 + [1] * 20, [0] * 16 + [1] * 4 + [1] * 16 + [0] * 4, None),
        ([0] * 5 + [1] * 5, [0] * 5 + [1] * 5, None),
        ([2] * 10, [2] * 10, None),
    ],
)
def test_a_useless_classifier_is_told(labels, answers, said):
    """One answer for all, or no better than the most frequent class; none of it of a good one, of a perfect one on few
    images, or where all images are of one class."""
    found = answering(labels, answers).weakness
    assert found is None if said is None else said in found


def test_a_useless_multi_label_classifier_is_told():
    """Scores that have nothing to do with the labels; the same answer for all images although the ranking is good."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(80, 3, generator=generator) < 0.4
    noise = torch.randn(80, 3, generator=generator)
    assert "ranks its images significantly above the others" in evaluation(labels, noise).weakness
    assert "answers no class for every image" in evaluation(labels, labels + 0.1 * noise - 9).weakness
    assert "answers 'cat', 'dog', 'owl' for every image" in evaluation(labels, labels + 0.1 * noise + 9).weakness
    assert evaluation(labels, 4.0 * labels - 2 + noise).weakness is None


def test_groups_below_the_rest():
    """37 groups are a table, worst first; what is below is by Fisher's exact test and Holm's correction, computed anew
    here with scipy's own."""
    generator = torch.Generator().manual_seed(1)
    names = [f"p{number % 37}" for number in range(1000)]
    bad = torch.tensor([name in ("p3", "p30") for name in names])
    right = torch.rand(1000, generator=generator) < torch.where(bad, 0.3, 0.85)
    rows = by_group(answering([0] * 1000, (~right).int().tolist()), names)
    assert [row.name for row in rows if row.below] == [rows[0].name, rows[1].name]
    assert {row.name for row in rows[:2]} == {"p3", "p30"}
    assert all(one.accuracy <= other.accuracy for one, other in pairwise(rows))
    hits, chances = int(right.sum()), {}
    for row in rows:
        own = round(row.accuracy * row.images)
        table = [[own, row.images - own], [hits - own, 1000 - row.images - hits + own]]
        chances[row.name] = fisher_exact(table, alternative="less").pvalue
    ordered = sorted(chances.values())
    limit = next(rank for rank, chance in enumerate(ordered) if chance * (37 - rank) > 0.05)
    assert {row.name for row in rows if row.below} == {name for name in chances if chances[name] in ordered[:limit]}
    lines = group_lines("patient", rows)
    assert "2 of 37 groups are significantly below the rest" in lines[0]
    assert re.fullmatch(r"  patient  images   right  95 % interval", lines[1])
    assert lines[2].split()[0] == rows[0].name
    assert lines[2].endswith("below")
    assert len(lines) == 2 + 37


def test_many_groups_are_not_all_printed():
    """Of a thousand the worst forty, and how many more there are; one without a name is told as one."""
    lines = group_lines("file", by_group(answering([0, 1] * 500, [0, 1] * 500), ["", *map(str, range(999))]))
    assert len(lines) == 2 + 40 + 1
    assert lines[2].startswith("  (no value)")
    assert lines[-1] == "  … and 960 more"


def test_chance_groups_are_seldom_below():
    """Of 37 equal groups, in 20 sets, one or more counts as below in about 5 % of the sets or fewer."""
    generator, wrong = torch.Generator().manual_seed(2), 0
    names = [f"p{number % 37}" for number in range(740)]
    for _ in range(20):
        answers = (torch.rand(740, generator=generator) < 0.2).int().tolist()
        wrong += any(row.below for row in by_group(answering([0] * 740, answers), names))
    assert wrong <= 3
