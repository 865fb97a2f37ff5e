"""Is a run folder free, resumable or taken?"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vismoe.files import write_json
from vismoe.training import Run
from vismoe.training.run import ASKED, INITIAL

from .options import Options

REPORT = "report.json"
"""Written last: a run that has it is finished."""
ASIDE = f".{ASKED}"
"""What a run that was killed while it reserved its folder may have left."""


def free(options: Options) -> Path:
    """The first of `runs/finetune`, `runs/finetune-2`, … that is not there, or an unfinished run of these options."""
    path, number = Path("runs/finetune"), 2
    while path.exists() and not (_asked(path) == asdict(options) and not (path / REPORT).exists()):
        path, number = Path(f"runs/finetune-{number}"), number + 1
    return path


def _asked(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((path / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def check(options: Options, path: Path) -> None:
    """Raises FileExistsError for a folder that is neither free nor an unfinished run of the same options, ValueError
    for one among the images."""
    if path.resolve().is_relative_to(Path(options.data).resolve()) and Path(options.data).is_dir():
        raise ValueError(f"{path} is inside {options.data}, where it would count as images: choose another --out")
    if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {ASIDE}):
        asked = _asked(path)
        if asked is None:
            raise FileExistsError(f"{path} exists and is no run of finetune: choose another --out, or remove it")
        ours = asdict(options)
        if other := [name for name in ours if asked.get(name) != ours[name]]:
            told = ", ".join(f"{name}={asked.get(name)} there, {ours[name]} here" for name in other)
            raise FileExistsError(f"{path} was begun with other options ({told}): choose another --out")
        if (path / REPORT).exists():
            raise FileExistsError(f"{path} is finished: choose another --out, or remove it")


def withdraw(path: Path) -> None:
    """Takes back a reservation that nothing came of."""
    if Run.of(path) is None:
        shutil.rmtree(path / INITIAL, ignore_errors=True)
        (path / ASKED).unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()


def reserve(options: Options, path: Path) -> None:
    """Writes what is asked for into a run folder: another `finetune` may go on with it if it asks for the same."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / ASKED, asdict(options), aside=path / ASIDE)
