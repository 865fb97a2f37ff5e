"""Notes of the verbs beside their results, on stderr."""

import sys
from pathlib import Path

from vismoe.data import Unreadable


def note(text: str) -> None:
    print(f"vismoe: note: {text}", file=sys.stderr)


def refuse_existing(path: Path) -> None:
    """Raises FileExistsError where the path exists."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another one, or remove it")


def note_left_out(entry: Unreadable) -> None:
    note(f"{entry.file!r} is left out: {entry.reason}")
