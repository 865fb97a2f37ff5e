"""pytest tests/test_evidence_runs.py: what the study runs follows from its pilots, by rules that nobody bends."""

import math

import pytest
from evidence.families import DENSE_1, GROWN, SPARSE_32
from evidence.rates import lowest
from evidence.runs import KEY, MATRICES, RATES, SEEDS, WIDTHS, Run, key_of, queue, too_short

pytestmark = pytest.mark.benchmarks

BEST = 1.3e-3


def rows(runs, loss, last=0.01):
    """Of each run `loss` at its end, and what came before: the last quarter brought so large a part of the fall."""
    end = {run: loss(run) for run in runs}
    before = {run: end[run] + last * (math.log(4000) - end[run]) for run in runs}
    return [
        dict(zip(KEY, run.key, strict=True)) | {"val_loss_75": str(before[run]), "val_loss_100": str(end[run])}
        for run in runs
    ]


def finished(loss, last="decisive", part=0.01):
    """The queue after all that is known has been run, however often more becomes known."""
    table = []
    while missing := [run for run in queue(table, last) if run.key not in map(key_of, table)]:
        table += rows(missing, loss, part)
    return queue(table, last)


def loss(run: Run) -> float:
    """Best a little above the middle rate; of the larger networks the ones grown in width are."""
    return math.log2(run.rate / BEST) ** 2 + {"width": 0.0}.get(run.family.grow, 0.1) + 0.1 / run.family.times


def test_nothing_is_decided_before_its_pilots():
    """At first there are pilots alone, of the trunk, dense and sparse, at every rate; a single one missing holds back
    what follows: ways of growing, at the rate that was best and at half of it, then all else."""
    first = queue([])
    assert {(run.stage, run.width) for run in first} == {("pilot", WIDTHS[0])}
    assert len(first) == len({run.key for run in first}) == 3 * len(RATES)
    assert queue(rows(first[1:], loss)) == first
    second = queue(rows(first, loss))
    tried = {(run.family, run.rate) for run in second[len(first) :]}
    assert tried == {(family, rate) for family in GROWN for rate in RATES[:2]}
    assert queue(rows(second[1:], loss)) == first
    assert {run.width for run in queue(rows(second, loss))} == set(WIDTHS)


def test_the_decisive_runs():
    """Thirty: a ladder of what grew best, sparse and fixed routing, three seeds, both widths, whole, each at the rate
    that its pilots say is best, between those that they tried. Matrices learn at that × 64 ÷ their width."""
    runs = [run for run in finished(loss) if run.stage == "decisive"]
    assert len(runs) == len({run.key for run in runs}) == 30
    assert {run.seed for run in runs} == set(SEEDS)
    assert {run.family.grow for run in runs if run.family.times > 1} == {"width"}
    assert {run.rate for run in runs} == {BEST}
    assert {run.steps for run in runs} == {2000}
    for run in runs:
        assert dict(run.recipe.learning_rates)[MATRICES] == BEST * 64 / run.network().embed_dim
    assert all(run.chooses == (run.stage != "decisive") for run in finished(loss))
    assert [(run.family, run.width) for run in finished(loss) if run.stage == "length"] == [
        (DENSE_1, width) for width in WIDTHS
    ]
    assert not [run for run in finished(loss, "pilot-rest") if run.stage == "decisive"]


def test_the_best_rate_lies_between_those_tried():
    """At the lowest point of a parabola in the rate's logarithm, found again to two digits; not where it may lie
    outside."""
    assert lowest({rate: 3 + 0.5 * math.log(rate / 7e-4) ** 2 for rate in (2.5e-4, 5e-4, 1e-3, 2e-3)}) == 7e-4
    assert lowest({1e-3: 1.0, 5e-4: 2.0, 2e-3: 2.0, 2.5e-4: 9.0}) == 1e-3
    with pytest.raises(ValueError, match=r"the best rate, 0\.002, is the last one tried"):
        lowest({5e-4: 3.0, 1e-3: 2.0, 2e-3: 1.0})


def test_nothing_is_decided_by_runs_that_were_too_short():
    """The queue ends with whole runs where one of them still learns."""
    assert "decisive" in {run.stage for run in finished(loss)}
    assert {run.stage for run in finished(loss, part=0.06)} == {"pilot", "length"}
    assert len(too_short(rows(finished(loss), loss, 0.06))) == len(WIDTHS)
    assert not too_short(rows(finished(loss), loss, 0.04))
    assert not too_short([])


@pytest.mark.parametrize(("best", "expected"), [(2.5e-4, {2.5e-4, 1.25e-4}), (4e-3, {4e-3, 8e-3})])
def test_rates_go_on_outwards(best, expected):
    """As long as the last one is best, another is tried, of that family alone."""
    runs = finished(lambda run: abs(math.log(run.rate / (best if run.family == SPARSE_32 else RATES[1]))), "pilot-rest")
    assert {run.rate for run in runs if run.family == SPARSE_32} == expected | set(RATES)
    assert {run.rate for run in runs if run.family == DENSE_1} == set(RATES)
