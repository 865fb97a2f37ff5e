"""Whether whole runs were long enough to say something about capacity, by the rule of RULES.md."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .tasks import TASKS

LAST_PART = 0.05
"""What the last quarter of the steps may bring of the whole fall."""


def last_part(row: Mapping[str, str]) -> float:
    """The last quarter's part of the fall of a run's loss, from the logarithm of its number of classes."""
    before, end = (float(row[f"val_loss_{share}"]) for share in (75, 100))
    return (before - end) / (math.log(TASKS[row["task"]].classes) - end)


def objections(ladder: Sequence[Mapping[str, str]]) -> list[str]:
    """What keeps a ladder of whole runs, from the smallest, from deciding anything; none: they were long enough."""
    found = [
        f"{row['family']} of width {row['width']} still learns: {last_part(row):.1%} of its fall is the last quarter's"
        for row in ladder
        if last_part(row) >= LAST_PART
    ]
    for small, large in pairwise(ladder):
        if float(large["val_loss_100"]) >= float(small["val_loss_100"]):
            found.append(f"{large['family']} of width {large['width']} ends no lower than {small['family']}")
    return found
