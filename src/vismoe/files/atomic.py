"""Files and folders that appear whole or not at all: written beside their place, synced to the disk, then renamed."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

LONGEST = 48
"""Most characters of a file's name in its temporary name: file systems limit the length of names."""


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def put_in_place(aside: Path, path: Path) -> None:
    """Renames a file or folder that is on the disk already to its final name. A file at `path` is replaced."""
    aside.replace(path)
    sync(path.parent)


@contextmanager
def whole_file(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Yields a path beside `path` to write a file to. It replaces `path` once the block has ended without an error.

    The file has the mode bits of the user's umask, whatever its writer set.

    **Arguments:**

    - `path`: the file.
    - `aside`: where it is written first; default: a unique name. Where only one process writes, a fixed name lets the
      next attempt overwrite what a killed one left behind.
    """
    aside = aside or _aside(path, "new")
    try:
        aside.unlink(missing_ok=True)
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)
        sync(aside)
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As `whole_file`, for several new files: all of them appear, or none."""
    asides, placed = [_aside(path, "new") for path in paths], []
    try:
        yield asides
        for aside in asides:
            sync(aside)
        for aside, path in zip(asides, paths, strict=True):
            put_in_place(aside, path)
            placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink()
        raise
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, known: Collection[str] | None = None, synced: bool = True) -> Iterator[Path]:
    """Yields a new folder beside `path` to write into. It becomes `path` once the block has ended without an error.

    **Arguments:**

    - `path`: the folder; folders above it are created.
    - `known`: names of the files that an older folder at `path` may hold, which is then replaced; default None: no
      folder may exist.
    - `synced`: whether all files are synced to the disk first, with the mode bits of the umask; default True. False
      saves time with the many small files of a cache, which can be created again.

    **Raises:** ValueError where `path` holds anything but `known` files; FileExistsError where no folder may exist and
    one does, before or after the block.
    """
    if path.exists() and known is not None and (not path.is_dir() or {file.name for file in path.iterdir()} - {*known}):
        raise ValueError(f"{path} exists and holds other files than {', '.join(known)}: choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = _aside(path, "new"), _aside(path, "old")
    aside.mkdir()
    try:
        yield aside
        if synced:
            _sync_folder(aside)
        if path.exists():
            if known is None:
                raise FileExistsError(f"{path} exists")
            path.rename(old)
        try:
            put_in_place(aside, path)
        except OSError as error:
            if known is None and path.is_dir():
                raise FileExistsError(f"{path} exists") from error  # another process was quicker
            raise
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Syncs a folder's files. Some writers (safetensors) make theirs readable by the owner only: here the umask
    decides."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)


def _aside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name[:LONGEST]}.{uuid4().hex}.{suffix}")


def write_text(path: Path, text: str, errors: str = "strict", aside: Path | None = None) -> None:
    """Writes a text file in UTF-8, whole or not at all.

    **Arguments:**

    - `path`: the file.
    - `text`: its content.
    - `errors`: as in `str.encode`, for characters that UTF-8 lacks; default "strict".
    - `aside`: see `whole_file`.
    """
    with whole_file(path, aside) as file:
        file.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, content: dict[str, Any], aside: Path | None = None) -> None:
    """Writes a JSON file, whole or not at all. `aside`: see `whole_file`."""
    write_text(path, json.dumps(content, indent=2) + "\n", aside=aside)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a cache; an empty one where the file is missing.

    **Raises:** ValueError where the file holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON, delete it: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object, delete it")
    return content
