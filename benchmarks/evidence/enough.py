"""Whether whole runs were long enough to say something about capacity, by the rule of RULES.md."""

import math
from collections.abc import Mapping

from .tasks import TASKS

LAST_PART = 0.05
"""What the last quarter of the steps may bring of the whole fall."""


def last_part(row: Mapping[str, str]) -> float:
    """The last quarter's part of the fall of a run's loss, from the logarithm of its number of classes."""
    before, end = (float(row[f"val_loss_{share}"]) for share in (75, 100))
    return (before - end) / (math.log(TASKS[row["task"]].classes) - end)


def objection(row: Mapping[str, str]) -> str:
    """What keeps a whole run from deciding anything; "": it was long enough."""
    if (part := last_part(row)) < LAST_PART:
        return ""
    return f"{row['family']} of width {row['width']} still learns: {part:.1%} of its fall is the last quarter's"
