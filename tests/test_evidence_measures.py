"""pytest tests/test_evidence_measures.py: the study's multiplier and verdict, on ladders whose answers are known."""

import math

import numpy as np
import pytest
from evidence.measures import (
    Interval,
    cost_at,
    multiplier,
    multiplier_over_pictures,
    multiplier_over_seeds,
    over_seeds,
    top1_at,
    verdict,
)

pytestmark = pytest.mark.benchmarks


def law(cost):
    """A dense model's loss by its cost."""
    return 5.0 * cost**-0.3


LADDER = [1.0, 2.0, 4.0]


@pytest.mark.parametrize("times", [1.0, 1.3, 2.0, 2.9, 4.0])
def test_the_multiplier_of_a_power_law_is_exact(times):
    """A model with the loss that the law gives at so many times its cost has that multiplier, whatever its own cost."""
    losses = [law(cost) for cost in LADDER]
    found, bound = multiplier(LADDER, losses, 1.1, law(times))
    assert found == pytest.approx(times / 1.1)
    assert bound == ""


def test_outside_the_ladder_it_is_a_bound():
    """Better than every rung: at least the best one's cost, which need not be the largest; worse than the cheapest: no
    more than that."""
    losses = [law(cost) for cost in LADDER]
    assert multiplier(LADDER, losses, 1.0, law(8.0)) == (4.0, "≥")
    assert multiplier(LADDER, [3.0, 2.0, 2.0], 1.0, 1.9) == multiplier(LADDER, [3.0, 2.0, 2.5], 1.0, 1.9) == (2.0, "≥")
    assert multiplier(LADDER, losses, 1.0, law(0.5)) == (1.0, "≤")
    assert math.isinf(cost_at(LADDER, losses, law(8.0)))


def test_a_rung_that_is_worse_than_a_cheaper_one_does_not_count():
    assert cost_at([1, 2, 4], [4.0, 4.5, 3.0], 3.9) == pytest.approx(cost_at([1, 4], [4.0, 3.0], 3.9))
    assert cost_at([1, 2, 4], [4.0, 4.5, 3.0], 4.0) == 1


def test_intervals_over_seeds_are_students():
    """Against figures from a table: t(2 degrees, 97.5 %) = 4.303."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    logs = multiplier_over_seeds([(2.0, ""), (8.0, "≥"), (4.0, "")])
    assert logs.value == pytest.approx(4.0)
    assert logs.bound == "≥"


def test_the_bootstrap_covers_what_pictures_vary_by():
    """Losses of 400 pictures with a common part: the multiplier is that of the means, its interval around it, narrower
    than one that leaves the common part out, and the same in each call."""
    generator = np.random.default_rng(1)
    common = generator.normal(0, 1.0, 400)

    def losses(cost, own):
        return law(cost) + common + generator.normal(0, own, 400)

    ladder = [[(cost, losses(cost, 0.02)) for cost in LADDER] for _ in range(3)]
    own = [(1.0, losses(2.0, 0.02)) for _ in range(3)]
    found = multiplier_over_pictures(ladder, own)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(2.0, rel=0.03)
    assert found.high / found.low < 1.1
    assert multiplier_over_pictures(ladder, own) == found


def test_accuracy_at_a_cost():
    assert top1_at([1, 4], [0.5, 0.7], 2) == pytest.approx(0.6)
    assert top1_at([1, 4], [0.5, 0.7], 8) == 0.7


@pytest.mark.parametrize(
    ("low", "high", "gain", "over_hash", "said"),
    [
        (1.35, 2.0, 0.02, 0.01, "pays"),
        (1.35, 2.0, 0.005, 0.01, "undecided"),
        (1.2, 2.0, 0.02, 0.01, "undecided"),
        (0.9, 1.2, 0.02, 0.01, "does not pay"),
        (1.35, 2.0, 0.02, -0.01, "memory, not routing"),
    ],
)
def test_the_rules(low, high, gain, over_hash, said):
    """Each verdict of RULES.md, where one width out of two decides."""
    good = Interval(1.7, 1.5, 1.9) if high >= 1.3 else Interval(1.0, 0.9, 1.1)
    multipliers = {64: [good, good], 128: [good, Interval((low + high) / 2, low, high)]}
    gains = {64: Interval(0.03, 0.02, 0.04), 128: Interval(gain, gain - 0.01, gain + 0.01)}
    hashes = {64: Interval(0.1, 0.05, 0.15), 128: Interval(0.1, over_hash, 0.2)}
    ladders = {64: [3.0, 2.0, 1.0], 128: [2.0, 1.5, 1.2]}
    assert verdict(multipliers, gains, hashes, ladders) == said
    no_ladder = said if said == "memory, not routing" else "undecided"
    assert verdict(multipliers, gains, hashes, ladders | {128: [2.0, 1.5, 1.5]}) == said
    assert verdict(multipliers, gains, hashes, ladders | {128: [2.0, 2.0, 2.1]}) == no_ladder
