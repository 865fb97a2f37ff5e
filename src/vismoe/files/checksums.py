"""SHA-256 of files, and trust on first use: every later use of a file is compared with the first one."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .atomic import read_json, write_json


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_package() -> str:
    """The SHA-256 of the source of this package: of all its Python files, in order of their names."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Seen:
    """A file as it was at its first use.

    - `size`: in bytes.
    - `sha256`: hexadecimal digits.
    - `source`: where the file comes from.
    """

    size: int
    sha256: str
    source: str


class Record:
    """A JSON file with the size and the SHA-256 of files at their first use, by name.

    **Arguments:**

    - `path`: the JSON file; it may not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in read_json(self.path)

    def compare(self, path: Path, source: str, remedy: str) -> Seen:
        """Compares a file with the record, if the record has its name.

        **Arguments:**

        - `path`: the file.
        - `source`: where it comes from.
        - `remedy`: end of the error message: what the user can do.

        **Returns:** the size and the SHA-256 of the file.

        **Raises:** ValueError if they are not as in the record.
        """
        seen = Seen(path.stat().st_size, sha256_of(path), source)
        entry = read_json(self.path).get(path.name)
        if entry is not None and (entry["size"], entry["sha256"]) != (seen.size, seen.sha256):
            raise ValueError(
                f"{source} has changed: it has {seen.size:,} bytes with SHA-256 {seen.sha256}, expected are "
                f"{entry['size']:,} bytes with SHA-256 {entry['sha256']}, as recorded in {self.path} for "
                f"{entry['source']}; {remedy}"
            )
        return seen

    def note(self, seen: Mapping[str, Seen]) -> None:
        """Adds files by name, unless the record has them already."""
        write_json(self.path, {name: asdict(file) for name, file in seen.items()} | read_json(self.path))
