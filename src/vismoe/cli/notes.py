"""What the verbs say beside their result, on stderr."""

import sys

from vismoe.data import Unreadable


def note(text: str) -> None:
    print(f"vismoe: note: {text}", file=sys.stderr)


def note_left_out(entry: Unreadable) -> None:
    note(f"{entry.file!r} is left out: {entry.reason}")
