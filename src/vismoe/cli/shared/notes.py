"""Notes of the commands, printed on stderr."""

import sys
from pathlib import Path

from vismoe.data import Unreadable


def note(text: str) -> None:
    print(f"vismoe: note: {text}", file=sys.stderr)


def warn_of_weakness(weakness: str | None, shortage: str | None, option: str) -> None:
    """Prints warnings on stdout if a trained network is no better than chance or its training was too short.

    **Arguments:**
    - `weakness`: see `vismoe.tasks.Evaluation`.
    - `shortage`: see `vismoe.training.Recipe`.
    - `option`: the option that makes the training longer.
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
