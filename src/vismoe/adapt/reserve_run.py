"""Is a run folder free, resumable or taken?"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vismoe.files import write_json
from vismoe.training import Run
from vismoe.training.run import INITIAL, OPTIONS

from .options import EXPERTS, LAYERS, NUM_EXPERTS, Options

REPORT = "report.json"
"""The file that is written last: a run with this file is finished."""
ASIDE = f".{OPTIONS}"
"""Temporary name of the reservation; a run that is killed while it writes may leave it."""
MADE_SPARSE = "made_sparse"
"""Whether a dense network is upcycled: not a field of `Options`, but saved with them."""


def free_run_folder(options: Options) -> Path:
    """The first of `runs/finetune`, `runs/finetune-2`, … that does not exist, or is an unfinished run with these
    options."""
    path, number = Path("runs/finetune"), 2
    while path.exists() and not (_is_same(_saved_options(path), options) and not (path / REPORT).exists()):
        path, number = Path(f"runs/finetune-{number}"), number + 1
    return path


def _saved_options(path: Path) -> dict[str, Any] | None:
    try:
        options: dict[str, Any] = json.loads((path / OPTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return options


def _is_same(saved: dict[str, Any] | None, options: Options) -> bool:
    return saved is not None and not _changed(saved, options)


def _changed(saved: dict[str, Any], options: Options) -> dict[str, tuple[Any, Any]]:
    """The options that differ, each with the saved and the given value."""
    then, now = _with_defaults(saved), _with_defaults(_to_json(options))
    return {name: (then.get(name), now[name]) for name in now if then.get(name) != now[name]}


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Saved options with the defaults of experts in place of None. In files of versions that saved these defaults, a
    network was made sparse if a value differed from them."""
    defaults = {"num_experts": NUM_EXPERTS, "layers": LAYERS, "experts": EXPERTS}
    values = values | {name: default for name, default in defaults.items() if values.get(name) is None}
    if MADE_SPARSE not in values:
        differs = any(values[name] != default for name, default in defaults.items()) or bool(values["freeze_router"])
        made_sparse = differs or values["train"] == "experts" if values["sparse"] is None else values["sparse"]
        values[MADE_SPARSE] = made_sparse
    return values


def _to_json(options: Options) -> dict[str, Any]:
    """The options as they are saved: moe_layers as "layers", its name when this file was first written."""
    values = {"layers" if name == "moe_layers" else name: value for name, value in asdict(options).items()}
    return values | {MADE_SPARSE: options.makes_sparse}


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
        if changed := _changed(saved, options):
            differences = ", ".join(f"{name}={then} then, {now} now" for name, (then, now) in changed.items())
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
    write_json(path / OPTIONS, _to_json(options), aside=path / ASIDE)
