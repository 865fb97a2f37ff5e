"""A folder of images that comes as a zip."""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vismoe.files import cache_folder, sha256_of, whole_folder

from .image_folder import HELD_OUT, TRAIN
from .metadata import METADATA

MAX_MEMBERS, MAX_BYTES, MAX_RATIO = 1_000_000, 64 * 2**30, 200
"""Files of an archive; what they are together when unpacked; how many times its size that may be. Images hardly
compress: an archive of more is made to fill a disk."""
FREE_BYTES = 64 * 2**20
"""Up to here MAX_RATIO does not matter: drawings of one colour compress well."""
CHUNK = 2**20
LONGEST_NAME = 255
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, ValueError)
"""What zipfile raises for members that it cannot read; NotImplementedError: of a compression that it does not know."""


def archive_folder(path: Path) -> Path:
    """The folder that a zip holds, unpacked below $XDG_CACHE_HOME (or ~/.cache), under the file's SHA-256, unless it
    is there already.

    **Raises:** ValueError for an archive that is damaged, encrypted, or not safe to unpack.
    """
    place = cache_folder() / "archives" / sha256_of(path)
    if not place.is_dir():
        unpack(path, place)
    return place


def unpack(path: Path, into: Path) -> Path:
    """Unpacks a zip as the new folder `into`, whole or not at all. A folder that all of it lies in is left away, as are
    hidden files and macOS's own (`__MACOSX/`).

    **Raises:** ValueError for an archive that is damaged or encrypted, that is larger than its limits when unpacked, or
    with a member that is no plain file below the archive's root.
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
    """A member's content; its checksum is compared at the end."""
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
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = _checked(path, entry).parts
        if entry.is_dir() or "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            continue
        if entry.flag_bits & 0x1:
            raise ValueError(f"{path} is encrypted: unpack it yourself, and give the folder")
        name = "/".join(parts)
        if name in found:
            raise ValueError(f"{path} has two members {entry.filename!r}: which one is it?")
        found[name] = entry
    if not found:
        raise ValueError(f"{path} holds no files")
    if (size := sum(entry.file_size for entry in found.values())) > limit:
        raise ValueError(_too_large(path, f"{size:,}", limit))
    return _below(found)


def _checked(path: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    """The place of a member, as a path of one or more names.

    **Raises:** ValueError for a path that leads elsewhere, and for what is neither file nor folder.
    """
    # `orig_filename` is as written; `filename` ends at a NUL.
    written = entry.orig_filename
    parts = written.replace("\\", "/").split("/")
    place = PurePosixPath(written if entry.create_system else written.replace("\\", "/"))  # 0: Windows wrote it
    nowhere = not (place.parts or entry.is_dir())
    if nowhere or not parts[0] or ".." in parts or "\0" in written or parts[0][1:2] == ":":
        raise ValueError(f"{path}: the member {written!r} leads out of the archive: it is not unpacked")
    if any(len(part.encode()) > LONGEST_NAME for part in place.parts):
        raise ValueError(f"{path}: the name of the member {written[:40]!r}… is longer than {LONGEST_NAME} bytes")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "no plain file"
        raise ValueError(f"{path}: the member {written!r} is {what}: put in the file itself")
    return place


def _below(found: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The same without a folder that all lie in, unless it is a part of a set or a class's own."""
    first = next(iter(found)).partition("/")[0]
    inside = [name.removeprefix(f"{first}/") for name in found]
    whole = any("/" in name for name in inside) or METADATA in inside
    if not whole or first in (TRAIN, *HELD_OUT) or not all(name.startswith(f"{first}/") for name in found):
        return found
    return dict(zip(inside, found.values(), strict=True))
