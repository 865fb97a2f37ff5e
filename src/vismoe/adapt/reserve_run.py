"""Is a run folder free, resumable or taken?"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vismoe.files import write_json
from vismoe.training import Run
from vismoe.training.run import INITIAL, OPTIONS

from .options import Options

REPORT = "report.json"
"""The file that is written last: a run with this file is finished."""
ASIDE = f".{OPTIONS}"
"""Temporary name of the reservation; a run that is killed while it writes may leave it."""


def free_run_folder(options: Options) -> Path:
    """The first of `runs/finetune`, `runs/finetune-2`, … that does not exist, or is an unfinished run with these
    options."""
    path, number = Path("runs/finetune"), 2
    while path.exists() and not (_saved_options(path) == asdict(options) and not (path / REPORT).exists()):
        path, number = Path(f"runs/finetune-{number}"), number + 1
    return path


def _saved_options(path: Path) -> dict[str, Any] | None:
    try:
        options: dict[str, Any] = json.loads((path / OPTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return options


def check_run_folder(options: Options, path: Path) -> None:
    """Checks that a folder is free, or an unfinished run with the same options.

    **Raises:** FileExistsError if it is neither; ValueError for a folder inside the set.
    """
    if path.resolve().is_relative_to(Path(options.data).resolve()) and Path(options.data).is_dir():
        raise ValueError(f"{path} is inside {options.data}, where it would count as images: choose another --out")
    if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {ASIDE}):
        saved = _saved_options(path)
        if saved is None:
            raise FileExistsError(f"{path} exists and is not a run of finetune: choose another --out, or remove it")
        given = asdict(options)
        if changed := [name for name in given if saved.get(name) != given[name]]:
            differences = ", ".join(f"{name}={saved.get(name)} then, {given[name]} now" for name in changed)
            raise FileExistsError(f"{path} was started with other options ({differences}): choose another --out")
        if (path / REPORT).exists():
            raise FileExistsError(f"{path} is finished: choose another --out, or remove it")


def withdraw(path: Path) -> None:
    """Removes the reservation of a run that was never started."""
    if Run.of(path) is None:
        shutil.rmtree(path / INITIAL, ignore_errors=True)
        (path / OPTIONS).unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()


def reserve(options: Options, path: Path) -> None:
    """Writes the options into a run folder, so that only `finetune` with the same options may resume it."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / OPTIONS, asdict(options), aside=path / ASIDE)
