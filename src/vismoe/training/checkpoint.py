"""Checkpoints: folders that appear whole or not at all, and are never believed without their sums.

RUN/checkpoints/step-000030/tensors.safetensors   every tensor of the state
                            state.json            everything else
                            manifest.json         SHA-256 of both, and of itself
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FORMAT_VERSION, RENAMED = 2, {"best_top1": "best_score"}
"""Format 1 had other names."""


class DamagedCheckpointError(ValueError):
    """A file of a checkpoint is not what was written."""


def write_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Writes `folder/step-NNNNNN`: aside, synced, then renamed: a crash at any moment leaves it whole or absent.

    **Raises:** OSError where it cannot be written (no space left, …); what was there before is untouched.
    """
    path, aside = path_of(folder, step), folder / f".step-{step:06d}.new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        # A safetensors file holds each storage once: copies, where tensors share one.
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, aside / TENSORS)
        (aside / VALUES).write_text(json.dumps(values, indent=1))
        sums = {name: _sum(aside / name) for name in (TENSORS, VALUES)}
        (aside / MANIFEST).write_bytes(_manifest(sums))
        for file in (aside / TENSORS, aside / VALUES, aside / MANIFEST, aside):
            _sync(file)
        _remove(path)
        aside.rename(path)
        _sync(folder)
    except SafetensorError as error:  # which is how its writer reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and values of a checkpoint, once its files have been found to be what was written.

    **Raises:** DamagedCheckpointError naming the file that is not.
    """
    try:
        manifest = (path / MANIFEST).read_bytes()
        sums = json.loads(manifest)["files"]
        written = [_manifest(sums, version) for version in range(1, FORMAT_VERSION + 1)]
        if manifest not in written or set(sums) != {TENSORS, VALUES}:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path / MANIFEST) from error
    for name, expected in sums.items():
        try:
            found = _sum(path / name)
        except OSError as error:
            raise _damaged(path / name) from error
        if found != expected:
            raise _damaged(path / name)
    values = json.loads((path / VALUES).read_text())
    return load_file(path / TENSORS), {RENAMED.get(name, name): value for name, value in values.items()}


def newest_checkpoint(folder: Path, complain: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is whole; `complain` is told of each that is not. None where there is none."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except DamagedCheckpointError as error:
            complain(f"{error}; going back to the checkpoint before it")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by step, oldest first. What is called otherwise is somebody's own."""
    found = [path for path in (folder.iterdir() if folder.is_dir() else []) if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=step_of)


def keep_checkpoints(folder: Path, step: int, last: int, best_step: int | None) -> None:
    """Of a run at `step` removes all checkpoints but the newest `last` and that of `best_step`; later ones, which the
    run has gone back behind, too."""
    paths = list_checkpoints(folder)
    until_now = [path for path in paths if step_of(path) <= step]
    for path in set(paths) - set(until_now[-last:]) - {path_of(folder, best_step or 0)}:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint is of."""
    return int(path.name.removeprefix("step-"))


def _manifest(sums: dict[str, str], version: int = FORMAT_VERSION) -> bytes:
    """One text for one set of sums: another text, however alike, is a damaged one."""
    own = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    content = {"format": version, "files": sums, "sha256": own}
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _damaged(path: Path) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"checkpoints/{path.parent.name}/{path.name} is damaged")
