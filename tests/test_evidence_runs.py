"""pytest tests/test_evidence_runs.py: what the study runs follows from its pilots, by rules that nobody bends."""

import math

import pytest
from evidence.families import DENSE_1, GROWN, SPARSE_32
from evidence.runs import KEY, RATES, SEEDS, WIDTHS, Run, key_of, queue, too_short


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
    """Best at the middle rate; of the larger networks at half of it, and grown in width."""
    best = RATES[1] / (2 if run.family.grow else 1)
    return abs(run.rate - best) * 100 + {"width": 0.0}.get(run.family.grow, 0.1) + 0.01 / run.family.times


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
    """Thirty: a ladder of what grew best, sparse and fixed routing, three seeds, both widths, whole, at the rates that
    were best."""
    runs = [run for run in finished(loss) if run.stage == "decisive"]
    assert len(runs) == len({run.key for run in runs}) == 30
    assert {run.seed for run in runs} == set(SEEDS)
    assert {run.family.grow for run in runs if run.family.times > 1} == {"width"}
    assert all(run.rate == RATES[1] / (2 if run.family.grow else 1) for run in runs)
    assert all(run.chooses == (run.stage != "decisive") for run in finished(loss))
    lengths = [(run.width, run.family.times) for run in finished(loss) if run.stage == "length"]
    assert lengths == [(width, times) for width in WIDTHS for times in (1, 2, 4)]
    assert not [run for run in finished(loss, "pilot-rest") if run.stage == "decisive"]


def test_nothing_is_decided_by_runs_that_were_too_short():
    """The queue ends with whole runs where one of them still learns, or a ladder's larger network is no better."""
    assert "decisive" in {run.stage for run in finished(loss)}
    assert {run.stage for run in finished(loss, part=0.06)} == {"pilot", "length"}

    def same(run):
        return loss(run) - 0.01 / run.family.times

    assert {run.stage for run in finished(same)} == {"pilot", "length"}
    length = [run for run in finished(same) if run.stage == "length"]
    assert too_short(rows(finished(same), same))[0] == "dense 4× width of width 64 ends no lower than dense 2× width"
    assert len(too_short(rows(finished(loss), loss, 0.06))) == len(length)
    assert not too_short(rows(finished(loss), loss))
    assert not too_short([])


@pytest.mark.parametrize(("best", "expected"), [(2.5e-4, {2.5e-4, 1.25e-4}), (4e-3, {4e-3, 8e-3})])
def test_rates_go_on_outwards(best, expected):
    """As long as the last one is best, another is tried, of that family alone."""
    runs = finished(lambda run: abs(run.rate - (best if run.family == SPARSE_32 else RATES[1])), "pilot-rest")
    assert {run.rate for run in runs if run.family == SPARSE_32} == expected | set(RATES)
    assert {run.rate for run in runs if run.family == DENSE_1} == set(RATES)
