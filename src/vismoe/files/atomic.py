"""Atomic writes: files and folders are written under a temporary name, synced to the disk, then renamed. So each is
complete or does not exist."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

LONGEST = 48
"""Number of characters of a file name that are used in its temporary name: file systems limit the length of names."""


def sync(path: Path) -> None:
    """Waits until the content of a file, or the list of files in a folder, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def put_in_place(aside: Path, path: Path) -> None:
    """Renames a file or folder that has been synced to its final name. Replaces a file at `path`."""
    aside.replace(path)
    sync(path.parent)


@contextmanager
def whole_file(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Context manager that writes a file atomically. Yields a temporary path to write to; at the end of the block, if
    there was no error, that file replaces `path`.

    The file gets the mode bits of the user's umask.

    **Arguments:**

    - `path`: the file.
    - `aside`: the temporary path; default: a unique name in the same folder. If only one process writes, use a fixed
      name: then the next write removes what a killed process left behind.
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
    """Context manager as `whole_file`, for several new files: all of them are created, or none."""
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
    """Context manager that writes a folder atomically. Yields a temporary folder to write into; at the end of the
    block, if there was no error, it is renamed to `path`.

    **Arguments:**

    - `path`: the folder; its parent folders are created.
    - `known`: if a folder at `path` has only files with these names, it is replaced; default None: no folder may exist.
    - `synced`: whether all files are synced to the disk, and get the mode bits of the umask; default True. False is
      faster for the many small files of a cache, which can be created again.

    **Raises:** ValueError if the folder at `path` has other files than `known`; FileExistsError if `known` is None and
    the folder exists, before or after the block.
    """
    if path.exists() and known is not None and (not path.is_dir() or {file.name for file in path.iterdir()} - {*known}):
        raise ValueError(f"{path} exists and has other files than {', '.join(known)}: choose another path")
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
                raise FileExistsError(f"{path} exists") from error  # another process was faster
            raise
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Syncs all files of a folder, and sets their mode bits by the umask: safetensors, for example, makes its files
    readable only by the owner."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)


def _aside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name[:LONGEST]}.{uuid4().hex}.{suffix}")


def write_text(path: Path, text: str, errors: str = "strict", aside: Path | None = None) -> None:
    """Writes a text file in UTF-8, atomically.

    **Arguments:**

    - `path`: the file.
    - `text`: its content.
    - `errors`: as in `str.encode`, for characters that cannot be encoded; default "strict".
    - `aside`: see `whole_file`.
    """
    with whole_file(path, aside) as file:
        file.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, content: dict[str, Any], aside: Path | None = None) -> None:
    """Writes a JSON file, atomically. `aside`: see `whole_file`."""
    write_text(path, json.dumps(content, indent=2) + "\n", aside=aside)


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file of a cache. If the file does not exist, the object is empty.

    **Raises:** ValueError if the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON, delete it: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object, delete it")
    return content
