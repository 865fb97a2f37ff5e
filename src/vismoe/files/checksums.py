"""SHA-256 of files, and trust on first use: what a file was when it was first seen is compared at every later use."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .atomic import read_json, write_json


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Seen:
    """A file when it was first seen: `size` in bytes, `sha256`, and its `source`."""

    size: int
    sha256: str
    source: str


class Record:
    """A JSON file with size and SHA-256 of files when they were first seen, by their names (trust on first use)."""

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in read_json(self.path)

    def compare(self, path: Path, source: str, remedy: str) -> Seen:
        """Size and SHA-256 of a file, which must match the record where that has the file's name.

        **Arguments:**

        - `path`: the file.
        - `source`: where it comes from.
        - `remedy`: what the user can do where it does not match.

        **Raises:** ValueError for another file, with what was given and expected.
        """
        seen = Seen(path.stat().st_size, sha256_of(path), source)
        entry = read_json(self.path).get(path.name)
        if entry is not None and (entry["size"], entry["sha256"]) != (seen.size, seen.sha256):
            raise ValueError(
                f"{source} is not the file that it was: {seen.size:,} bytes with SHA-256 {seen.sha256}, expected are "
                f"{entry['size']:,} bytes with SHA-256 {entry['sha256']}, as {self.path} has them of "
                f"{entry['source']}; {remedy}"
            )
        return seen

    def note(self, seen: Mapping[str, Seen]) -> None:
        """Adds files, by their names, that are not in the record."""
        write_json(self.path, {name: asdict(file) for name, file in seen.items()} | read_json(self.path))
