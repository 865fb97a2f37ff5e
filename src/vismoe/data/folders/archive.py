"""A folder of images in a zip."""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vismoe.files import cache_folder, sha256_of, whole_folder

from .layout import split_of
from .metadata import TABLES

MAX_MEMBERS, MAX_BYTES, MAX_RATIO = 1_000_000, 64 * 2**30, 200
"""Most files of an archive, most bytes when unpacked, and most bytes for each of its own. Images hardly compress: an
archive of more is made to fill a disk."""
FREE_BYTES = 64 * 2**20
"""Unpacked size up to which MAX_RATIO is not checked: drawings of one colour compress well."""
CHUNK = 2**20
LONGEST_NAME = 255
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, ValueError)
"""Errors of zipfile for members that it cannot read; NotImplementedError: for an unknown compression."""


def archive_folder(path: Path) -> Path:
    """The folder of a zip, unpacked below $XDG_CACHE_HOME (or ~/.cache) under the file's SHA-256, if it is not there
    already.

    **Raises:** ValueError for an archive that is damaged, encrypted, or not safe to unpack.
    """
    place = cache_folder() / "archives" / sha256_of(path)
    if not place.is_dir():
        unpack(path, place)
    return place


def unpack(path: Path, into: Path) -> Path:
    """Unpacks a zip as the new folder `into`, whole or not at all. A single folder around everything is dropped, and so
    are hidden files and those of macOS (`__MACOSX/`).

    **Raises:** ValueError for an archive that is damaged or encrypted, that is above the limits when unpacked, or that
    has a member which is no plain file below the archive's root.
    """
    try:
        with whole_folder(into, synced=False) as folder, _opened(path) as archive:
            _extract(path, archive, folder)
    except FileExistsError:
        if not into.is_dir():  # otherwise another process has unpacked the same
            raise
    return into


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a zip, or is damaged: {error}") from error


def _extract(path: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    limit = _limit(path)
    members = _members(path, archive.infolist(), limit)
    written = 0
    for name, member in members.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{path}: {member.filename!r} and another member are at one place") from error
        with file:
            for chunk in _chunks(path, archive, member):
                written += len(chunk)
                if written > limit:
                    raise ValueError(_too_large(path, f"more than {limit:,}", limit))
                file.write(chunk)


def _chunks(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterable[bytes]:
    """The content of a member; its checksum is compared at the end."""
    try:
        with archive.open(member) as source:
            while chunk := source.read(CHUNK):
                yield chunk
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged: {member.filename!r}: {error}") from error


def _limit(path: Path) -> int:
    return min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))


def _too_large(path: Path, size: str, limit: int) -> str:
    return (
        f"{path} is {size} bytes when unpacked; accepted are {limit:,} (up to {MAX_RATIO} times its own size): "
        "unpack it yourself, and give the folder"
    )


def _members(path: Path, entries: list[zipfile.ZipInfo], limit: int) -> dict[str, zipfile.ZipInfo]:
    """The files to be unpacked, by their paths below the set's folder."""
    if len(entries) > MAX_MEMBERS:
        raise ValueError(f"{path} has {len(entries):,} members; accepted are {MAX_MEMBERS:,}")
    files: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = _member_path(path, entry).parts
        if entry.is_dir() or "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            continue
        if entry.flag_bits & 0x1:
            raise ValueError(f"{path} is encrypted: unpack it yourself, and give the folder")
        name = "/".join(parts)
        if name in files:
            raise ValueError(f"{path} has two members {entry.filename!r}: which one is it?")
        files[name] = entry
    if not files:
        raise ValueError(f"{path} holds no files")
    if (size := sum(entry.file_size for entry in files.values())) > limit:
        raise ValueError(_too_large(path, f"{size:,}", limit))
    return _without_common_folder(files)


def _member_path(path: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    """The path of a member below the archive's root.

    **Raises:** ValueError for a path that leads out of the archive, and for a member that is no file and no folder.
    """
    # `orig_filename` is as written; `filename` ends at a NUL.
    written = entry.orig_filename
    parts = written.replace("\\", "/").split("/")
    place = PurePosixPath(written if entry.create_system else written.replace("\\", "/"))  # 0: Windows wrote it
    is_empty = not (place.parts or entry.is_dir())
    if is_empty or not parts[0] or ".." in parts or "\0" in written or parts[0][1:2] == ":":
        raise ValueError(f"{path}: the member {written!r} leads out of the archive: it is not unpacked")
    if any(len(part.encode()) > LONGEST_NAME for part in place.parts):
        raise ValueError(f"{path}: the name of the member {written[:40]!r}… is longer than {LONGEST_NAME} bytes")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a link" if kind == stat.S_IFLNK else "no plain file"
        raise ValueError(f"{path}: the member {written!r} is {fault}: put in the file itself")
    return place


def _without_common_folder(files: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The files by their paths below a folder that all lie in, unless it is a split of a set or a class folder."""
    first = next(iter(files)).partition("/")[0]
    inside = [name.removeprefix(f"{first}/") for name in files]
    is_set = any("/" in name for name in inside) or not set(TABLES).isdisjoint(inside)
    if not is_set or split_of(first) is not None or not all(name.startswith(f"{first}/") for name in files):
        return files
    return dict(zip(inside, files.values(), strict=True))
