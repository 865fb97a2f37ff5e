"""Notes of the verbs beside their results, on stderr."""

import sys
from pathlib import Path

from vismoe.data import Unreadable


def note(text: str) -> None:
    print(f"vismoe: note: {text}", file=sys.stderr)


def warn_of_weakness(weakness: str | None, shortage: str | None, option: str) -> None:
    """Prints, on stdout beside the result, why a trained network is of no use, and why its training was too short.

    **Arguments:** `weakness`: see `vismoe.tasks.Evaluation`; `shortage`: see `vismoe.training.Recipe`; `option`: what
    makes a training longer.
    """
    if weakness is not None:
        print(f"warning: {weakness}")
    if shortage is not None:
        print(f"warning: {shortage}: more with {option}")


def refuse_existing(path: Path) -> None:
    """Raises FileExistsError where the path exists."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another one, or remove it")


def note_left_out(entry: Unreadable) -> None:
    note(f"{entry.file!r} is left out: {entry.reason}")
