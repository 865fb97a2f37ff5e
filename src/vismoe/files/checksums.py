"""SHA-256 of files; what files were when they were first seen, and whether they are that still (trust on first use)."""

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
    """A file as it was: `size` in bytes, `sha256`, and where it was from."""

    size: int
    sha256: str
    source: str


class Record:
    """A JSON file of what files were when they were first seen, by their names."""

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in read_json(self.path)

    def compare(self, path: Path, source: str, remedy: str) -> Seen:
        """What a file is, which is what the record has of its name, if anything.

        **Arguments:** `source`: where it is from; `remedy`: what to do where it is another one.

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
        write_json(self.path, {name: asdict(each) for name, each in seen.items()} | read_json(self.path))
