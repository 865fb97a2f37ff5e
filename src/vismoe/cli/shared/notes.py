"""Notes of the commands, printed on stderr."""

import sys
from pathlib import Path

from torch import nn

from vismoe.data import Data, Unreadable, note_of_levels
from vismoe.weights import data_config


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


def note_set(data: Data, model: nn.Module, is_own: bool) -> None:
    """Prints what a user should know of a set: the files that are left out, the folders that are not read, and levels
    of images of 16 bits that the model takes as black or white.

    **Arguments:** `is_own`: whether it is the own set of the model's run, whose training said of its folders.
    """
    for entry in data.left_out:
        note_left_out(entry)
    levels = note_of_levels(data, data_config(model).get("max_level"))
    for text in (*(() if is_own else data.notes), *([levels] if levels else [])):
        note(text)


def note_left_out(entry: Unreadable) -> None:
    note(f"{entry.file!r} is left out: {entry.reason}")
