"""Published weights: downloaded, converted to model folders and cached."""

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
"""Environment variable with a mirror of the publisher's bucket: an http, https, gs or file address, or a folder."""


def pretrained_folder(published: Published) -> Path:
    """Returns the model folder of published weights, CACHE/weights/NAME/model.

    If it is missing, the checkpoint is downloaded (from the publisher, or the address in `VISMOE_WEIGHTS_URL`) and
    converted, and the download is deleted. One of several processes does so, the others wait. Files are trusted on
    first use: CACHE/weights/NAME/record.json has their size and SHA-256, which later reads must match.

    **Raises:** ValueError, FileNotFoundError if the files cannot be downloaded, have changed or are not a checkpoint.
    """
    place = cache_folder() / "weights" / published.name
    folder, record = place / "model", Record(place / "record.json")
    if not _is_complete(folder, record):
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            if not _is_complete(folder, record):
                _download_and_convert(published, place, record)
    record.compare(folder / WEIGHTS, str(folder / WEIGHTS), f"delete {place} to download them again")
    return folder


def _is_complete(folder: Path, record: Record) -> bool:
    return all((folder / name).is_file() for name in (CONFIG, WEIGHTS)) and WEIGHTS in record


def _download_and_convert(published: Published, place: Path, record: Record) -> None:
    base = _base()
    files = base if isinstance(base, Path) else place / "files"
    index, seen = f"{published.name}.index", {}
    try:
        seen[index] = _ensure_file(base, files, index, record)
        for name in _data_files(files / index, published.name, is_ours=files is not base):
            seen[name] = _ensure_file(base, files, name, record)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the weights {published.name} cannot be downloaded: {error} (set {VARIABLE} to a mirror's address or a "
            "folder with the files)"
        ) from error
    try:
        convert(files / published.name, place / "model")
    except ValueError as error:
        remedy = "" if files is base else f" (delete {files} to download them again)"
        raise ValueError(f"{error}{remedy}") from error
    weights = place / "model" / WEIGHTS
    seen[WEIGHTS] = record.compare(weights, str(weights), f"delete {place} to start again")
    record.note(seen)  # only now: a file that cannot be converted must not be trusted
    if files is not base:
        shutil.rmtree(files)


def _data_files(index: Path, name: str, is_ours: bool) -> list[str]:
    try:
        shards, _ = read_index(index)
    except ValueError:
        if is_ours:  # the server answered with something else
            index.unlink()
        raise
    return [f"{name}.data-{shard:05d}-of-{shards:05d}" for shard in range(shards)]


def _base() -> Path | str:
    """The location of the checkpoint files: a folder, or an address to which file names are appended.

    **Raises:** ValueError for anything else.
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
        raise ValueError(f"{VARIABLE}={given!r} is not an existing folder; {accepted}")
    return folder


def _ensure_file(base: Path | str, files: Path, name: str, record: Record) -> Seen:
    """Checks that a file has not changed. Downloads it into `files` if it is missing."""
    path, restart = files / name, f"delete {record.path.parent} to accept this one"
    if isinstance(base, Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return record.compare(path, str(path), f"restore the earlier file, or {restart}")
    if path.is_file():  # left by an interrupted call
        return record.compare(path, str(path), "delete it to download it again")
    address = f"{base}/{quote(name)}"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{path} is missing, and HF_HUB_OFFLINE forbids downloading {address}: unset it, or put the file there"
        )
    files.mkdir(exist_ok=True)
    fetch(address, path)
    try:
        return record.compare(path, address, restart)
    except ValueError:
        path.unlink()
        raise


provide_weights(pretrained_folder)
