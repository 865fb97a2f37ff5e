"""Accuracy by group of images, for example by patient, camera or site."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .chance import holm
from .labels import ClassEvaluation, wilson_interval

SHOWN = 40
"""Largest number of groups in the printed table."""


@dataclass(frozen=True)
class Group:
    """The accuracy on a group of images.

    - `name`: name of the group.
    - `images`: number of images.
    - `accuracy`: fraction of images with the right prediction.
    - `low`, `high`: 95 % confidence interval of the accuracy (Wilson).
    - `below`: whether the accuracy is significantly lower than on all other images.
    """

    name: str
    images: int
    accuracy: float
    low: float
    high: float
    below: bool


def by_group(evaluation: ClassEvaluation, groups: Sequence[str]) -> list[Group]:
    """The accuracy on each group of images, lowest first.

    `Group.below` is decided by a one-sided Fisher's exact test of the group's images against all others, with Holm's
    correction for the number of groups.

    **Arguments:**

    - `evaluation`: the evaluation of N images.
    - `groups`: (N,), name of the group of each image.
    """
    from scipy.stats import hypergeom  # its import takes a second

    right = evaluation.right.tolist()
    images, hits = Counter(groups), Counter(group for hit, group in zip(right, groups, strict=True) if hit)
    names = sorted(images)
    chances = [float(hypergeom.cdf(hits[name], len(right), sum(right), images[name])) for name in names]
    rows = [
        Group(name, images[name], hits[name] / images[name], *wilson_interval(hits[name], images[name]), below)
        for name, below in zip(names, holm(chances), strict=True)
    ]
    return sorted(rows, key=lambda group: group.accuracy)


def group_lines(column: str, groups: Sequence[Group]) -> list[str]:
    """The lines of a printed table of groups, and the number of groups that are below the others.

    **Arguments:**

    - `column`: name of the column with the groups.
    - `groups`: the groups, lowest accuracy first.
    """
    shown = groups[:SHOWN]
    named = [" ".join(each.name.split()) or "(no value)" for each in shown]
    width = max(map(len, [column, *named]))
    below = sum(each.below for each in groups)
    lines = [
        f"accuracy by {column}, lowest first: {below} of {len(groups)} groups are significantly below the rest "
        f"(Fisher's exact test against all other images, Holm's correction for {len(groups)} groups, 5 %)",
        f"  {column:{width}}  images   right  95 % interval",
    ]
    for name, each in zip(named, shown, strict=True):
        interval = f"{each.low:.4f} to {each.high:.4f}"
        lines.append(
            f"  {name:{width}}  {each.images:6}  {each.accuracy:.4f}  {interval}{'  below' if each.below else ''}"
        )
    if more := len(groups) - len(shown):
        lines.append(f"  … and {more} more")
    return lines
