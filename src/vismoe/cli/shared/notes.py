"""Notes of the commands, printed on stderr."""

import sys
from pathlib import Path

from torch import nn

from vismoe.data import Data, Unreadable, note_of_levels
from vismoe.weights import data_config, experts_on_disk


def note(text: str) -> None:
    print(f"vismoe: note: {text}", file=sys.stderr)


def note_step(text: str) -> None:
    """Prints that a step begins which may take a while."""
    print(f"vismoe: {text} …", file=sys.stderr, flush=True)


def warn_of_weakness(weakness: str | None, shortage: str | None, remedy: str) -> None:
    """Prints warnings on stdout if a trained network is no better than chance, or if its training was too short.

    **Arguments:**
    - `weakness`: see `vismoe.tasks.Evaluation`; None: no warning.
    - `shortage`: see `vismoe.training.Recipe`; None: no warning.
    - `remedy`: how to make the training long enough, with an option and its value.
    """
    if weakness is not None:
        print(f"warning: {weakness}")
    if shortage is not None:
        print(f"warning: {shortage}: {remedy}")


def refuse_existing(path: Path) -> None:
    """Raises FileExistsError if the path exists."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another one, or remove it")


def note_set(data: Data, model: nn.Module, is_own: bool) -> None:
    """Prints notes about a data set: files that are left out, folders that are not read, and 16-bit images that are
    nearly black or white for the model.

    **Arguments:**

    - `data`: the data set.
    - `model`: the network.
    - `is_own`: whether the model was trained on this data set. The training has then already printed the notes about
      folders.
    """
    for entry in data.left_out:
        note_left_out(entry)
    levels = note_of_levels(data, data_config(model).get("max_level"))
    for text in (*(() if is_own else data.notes), *([levels] if levels else [])):
        note(text)


def note_left_out(entry: Unreadable) -> None:
    note(f"{entry.file!r} is left out: {entry.reason}")


def note_reads(model: nn.Module) -> None:
    """Prints how much of a network's experts was read from disk, if they are there."""
    store = experts_on_disk(model)
    if store is not None:
        note(f"experts: {store.bytes_read / 1e9:.2f} GB read from disk; plans named {store.bytes_named / 1e9:.2f} GB")
