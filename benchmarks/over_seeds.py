"""Means of values from several seeds, with their intervals."""

from collections.abc import Sequence
from statistics import mean, stdev

from scipy.stats import t

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, by Student's t."""
    half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def told(values: Sequence[float]) -> str:
    """The mean and its interval as a text; for one value only that value."""
    if len(values) == 1:
        return f"{values[0]:+.4f}"
    low, high = interval(values)
    return f"{mean(values):+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
