"""Unpacks zips of image folders."""

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
"""Limits for an archive: number of files, unpacked size in bytes, and unpacked size ÷ archive size. Images hardly
compress, so an archive above the limits is probably an attack that fills the disk."""
FREE_BYTES = 64 * 2**20
"""Unpacked size in bytes up to which MAX_RATIO does not apply: drawings of one colour compress well."""
CHUNK = 2**20
LONGEST_NAME = 255
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, ValueError)
"""Errors that zipfile raises for damaged members; NotImplementedError: unknown compression."""


def archive_folder(path: Path) -> Path:
    """Unpacks a zip into the cache, unless that was done before.

    **Arguments:**

    - `path`: the zip.

    **Returns:** the unpacked folder; its name is the SHA-256 of the zip.

    **Raises:** ValueError for an archive that is damaged, encrypted, or not safe to unpack.
    """
    folder = cache_folder() / "archives" / sha256_of(path)
    if not folder.is_dir():
        unpack(path, folder)
    return folder


def unpack(path: Path, into: Path) -> Path:
    """Unpacks a zip atomically: the new folder is complete or does not exist.

    If all files are in one top-level folder, that folder is dropped. Hidden files and the files of macOS (`__MACOSX/`)
    are not unpacked.

    **Arguments:**

    - `path`: the zip.
    - `into`: the new folder.

    **Returns:** the new folder.

    **Raises:** ValueError for an archive that is damaged, encrypted or above the limits, or that has a member with a
    path outside the archive or a member that is not a plain file.
    """
    try:
        with whole_folder(into, synced=False) as folder, _opened(path) as archive:
            _extract(path, archive, folder)
    except FileExistsError:
        if not into.is_dir():  # otherwise another process has unpacked the same zip
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
            raise ValueError(f"{path}: {member.filename!r} and another member have the same path") from error
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
        f"{path} is {size} bytes when unpacked; accepted are {limit:,} (up to {MAX_RATIO} times the archive's size): "
        "unpack it yourself and use the folder"
    )


def _members(path: Path, entries: list[zipfile.ZipInfo], limit: int) -> dict[str, zipfile.ZipInfo]:
    """The members to unpack, by their paths in the new folder."""
    if len(entries) > MAX_MEMBERS:
        raise ValueError(f"{path} has {len(entries):,} members; accepted are {MAX_MEMBERS:,}")
    files: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = _member_path(path, entry).parts
        if entry.is_dir() or "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            continue
        if entry.flag_bits & 0x1:
            raise ValueError(f"{path} is encrypted: unpack it yourself and use the folder")
        name = "/".join(parts)
        if name in files:
            raise ValueError(f"{path} has two members {entry.filename!r}: remove one")
        files[name] = entry
    if not files:
        raise ValueError(f"{path} has no files")
    if (size := sum(entry.file_size for entry in files.values())) > limit:
        raise ValueError(_too_large(path, f"{size:,}", limit))
    return _without_common_folder(files)


def _member_path(path: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    """The path of a member.

    **Raises:** ValueError for a path outside the archive, and for a member that is neither a file nor a folder.
    """
    # `orig_filename` is unchanged; `filename` ends at a NUL.
    written = entry.orig_filename
    parts = written.replace("\\", "/").split("/")
    # create_system 0: the archive was written on Windows
    member = PurePosixPath(written if entry.create_system else written.replace("\\", "/"))
    is_empty = not (member.parts or entry.is_dir())
    if is_empty or not parts[0] or ".." in parts or "\0" in written or parts[0][1:2] == ":":
        raise ValueError(f"{path}: the path of the member {written!r} is outside the archive: it is not unpacked")
    if any(len(part.encode()) > LONGEST_NAME for part in member.parts):
        raise ValueError(f"{path}: the name of the member {written[:40]!r}… is longer than {LONGEST_NAME} bytes")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a link" if kind == stat.S_IFLNK else "not a plain file"
        raise ValueError(f"{path}: the member {written!r} is {fault}: replace it by the file itself")
    return member


def _without_common_folder(files: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The members without the top-level folder, if all of them are in one that is neither a split nor a class."""
    first = next(iter(files)).partition("/")[0]
    inside = [name.removeprefix(f"{first}/") for name in files]
    is_set = any("/" in name for name in inside) or not set(TABLES).isdisjoint(inside)
    if not is_set or split_of(first) is not None or not all(name.startswith(f"{first}/") for name in files):
        return files
    return dict(zip(inside, files.values(), strict=True))
