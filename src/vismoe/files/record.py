"""What files were when they were first seen: size and SHA-256, noted once, compared ever after."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    **Raises:** ValueError where it holds anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON, delete it: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object, delete it")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = Seen(size, hashlib.file_digest(file, "sha256").hexdigest(), source)
        entry = read_json(self.path).get(path.name)
        if entry is not None and (entry["size"], entry["sha256"]) != (found.size, found.sha256):
            raise ValueError(
                f"{source} is not the file that it was: {found.size:,} bytes with SHA-256 {found.sha256}, expected are "
                f"{entry['size']:,} bytes with SHA-256 {entry['sha256']}, as {self.path} has them of "
                f"{entry['source']}; {remedy}"
            )
        return found

    def note(self, seen: Mapping[str, Seen]) -> None:
        """Adds files, by their names, that are not in the record."""
        write_json(self.path, {name: asdict(each) for name, each in seen.items()} | read_json(self.path))
