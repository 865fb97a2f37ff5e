"""The accuracy of a classifier on each group of images, such as those of one patient, camera or site."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .chance import holm
from .labels import ClassEvaluation, wilson_interval

SHOWN = 40


@dataclass(frozen=True)
class Group:
    """The accuracy on a group of images; `low` and `high`: its 95 % interval (Wilson); `below`: whether it is below
    that on all other images by more than chance."""

    name: str
    images: int
    accuracy: float
    low: float
    high: float
    below: bool


def by_group(evaluation: ClassEvaluation, groups: Sequence[str]) -> list[Group]:
    """The accuracy on each group of images, worst first. `groups`: the name of each image's group.

    `below` is by Fisher's exact test, one-sided, of the group's images against all others, corrected for the number of
    groups (Holm).
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
    """A table of groups for people, worst first, and how many are below the others. `column`: what groups them."""
    shown = groups[:SHOWN]
    named = [" ".join(each.name.split()) or "(no value)" for each in shown]
    width = max(map(len, [column, *named]))
    below = sum(each.below for each in groups)
    lines = [
        f"right by {column}, worst first: {below} of {len(groups)} groups are below the rest by more than chance "
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
