"""Published weights as model folders: downloaded and converted once, into the cache."""

import os
import shutil
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock
from huggingface_hub import constants

from vismoe.files import Record, Seen, cache_folder, fetch

from .folders.format import CONFIG, WEIGHTS
from .published import PUBLISHER, Published
from .reference.convert import convert
from .reference.index import read_index
from .registry import provide_weights

VARIABLE = "VISMOE_WEIGHTS_URL"
"""Where files are instead of in the publisher's bucket: an address of http, https, gs or file, or a folder."""


def pretrained_folder(published: Published) -> Path:
    """The model folder of published weights, CACHE/weights/NAME/model. Where it is not there, the checkpoint's files
    are had from the address that `VISMOE_WEIGHTS_URL` says, converted, and those that were downloaded removed; of
    several processes one does so and the others wait. CACHE/weights/NAME/record.json keeps size and SHA-256 of every
    file as it was first seen: what is read later, from wherever, is compared.

    **Raises:** ValueError, FileNotFoundError where they cannot be had, are not what they were or no such checkpoint.
    """
    place = cache_folder() / "weights" / published.name
    folder, record = place / "model", Record(place / "record.json")
    if not _is_there(folder, record):
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            if not _is_there(folder, record):
                _make(published, place, record)
    record.compare(folder / WEIGHTS, str(folder / WEIGHTS), f"delete {place}, and they are had anew")
    return folder


def _is_there(folder: Path, record: Record) -> bool:
    return all((folder / name).is_file() for name in (CONFIG, WEIGHTS)) and WEIGHTS in record


def _make(published: Published, place: Path, record: Record) -> None:
    base = _base()
    files = base if isinstance(base, Path) else place / "files"
    index, seen = f"{published.name}.index", {}
    try:
        seen[index] = _have(base, files, index, record)
        for name in _data_files(files / index, published.name, is_ours=files is not base):
            seen[name] = _have(base, files, name, record)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the weights {published.name} cannot be had: {error} ({VARIABLE} names another place: a mirror's address, "
            "or a folder with the files)"
        ) from error
    try:
        convert(files / published.name, place / "model")
    except ValueError as error:
        again = "" if files is base else f" (delete {files} to download them anew)"
        raise ValueError(f"{error}{again}") from error
    weights = place / "model" / WEIGHTS
    seen[WEIGHTS] = record.compare(weights, str(weights), f"delete {place} to begin anew")
    record.note(seen)  # only now: what no network can be made of is not what is expected ever after
    if files is not base:
        shutil.rmtree(files)


def _data_files(index: Path, name: str, is_ours: bool) -> list[str]:
    try:
        shards, _ = read_index(index)
    except ValueError:
        if is_ours:  # something else that the server answered with
            index.unlink()
        raise
    return [f"{name}.data-{shard:05d}-of-{shards:05d}" for shard in range(shards)]


def _base() -> Path | str:
    """Where the checkpoints' files are: a folder, or an address that their names are added to.

    **Raises:** ValueError for what is none of these.
    """
    given = os.environ.get(VARIABLE) or PUBLISHER
    parts = urlsplit(given)
    if parts.scheme == "gs":
        return f"https://storage.googleapis.com/{parts.netloc}{parts.path}".rstrip("/")
    if parts.scheme in ("http", "https"):
        return given.rstrip("/")
    folder = Path(unquote(parts.path) if parts.scheme == "file" else given)
    if not folder.is_dir():
        accepted = "accepted are a folder and addresses of http://, https://, gs:// and file://"
        raise ValueError(f"{VARIABLE}={given!r} is no folder that is there; {accepted}")
    return folder


def _have(base: Path | str, files: Path, name: str, record: Record) -> Seen:
    """Sees that one file is among `files`, and that it is what it was."""
    path, anew = files / name, f"delete {record.path.parent} to begin anew with this one"
    if isinstance(base, Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return record.compare(path, str(path), f"put that one there, or {anew}")
    if path.is_file():  # of an earlier call that ended before it had all
        return record.compare(path, str(path), "delete it, and it is downloaded anew")
    address = f"{base}/{quote(name)}"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{path} is not there, and HF_HUB_OFFLINE forbids to download {address}")
    files.mkdir(exist_ok=True)
    fetch(address, path)
    try:
        return record.compare(path, address, anew)
    except ValueError:
        path.unlink()
        raise


provide_weights(pretrained_folder)
