"""The CSV files of results/. Their rows are complete, even if a script is killed."""

import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Table:
    """The rows of one CSV file. The first row that is written determines the columns."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, str]]:
        """All rows; none if there is no file. An incomplete last line is left out, with a line on stderr."""
        return list(csv.DictReader(io.StringIO(self._lines()[0], newline="")))

    def done(self, *columns: str) -> set[tuple[str, ...]]:
        """The values of all rows in some columns: the measurements that exist."""
        return {tuple(row[name] for name in columns) for row in self.rows()}

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends a row with a single write, so that lines are complete even if the script is killed or another script
        appends at the same time.

        **Raises:** ValueError if the columns differ from the file's.
        """
        lines, cut_off = self._lines()
        if cut_off:
            self._replace(lines)
        columns = next(csv.reader(io.StringIO(lines, newline="")), list(row))
        if set(columns) != set(row):
            raise ValueError(f"{self.path} has the columns {', '.join(columns)}, the row {', '.join(row)}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        added = _text(columns, [row], header=not lines).encode(errors="surrogateescape")
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(file, added) < len(added):
                raise OSError(f"{self.path}: the row could not be written whole: is the disk full?")
        finally:
            os.close(file)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces all rows of the file."""
        self._replace(_text(list(rows[0]), rows, header=True))

    def _lines(self) -> tuple[str, str]:
        """The complete lines, and the rest."""
        if not self.path.exists():
            return "", ""
        text = self.path.read_bytes().decode(errors="surrogateescape")
        end = text.rfind("\n") + 1
        if text[end:]:
            print(f"{self.path}: the last line was cut off and is left out: {text[end:]!r}", file=sys.stderr)
        return text[:end], text[end:]

    def _replace(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f".{self.path.name}")
        aside.write_bytes(text.encode(errors="surrogateescape"))
        aside.replace(self.path)


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
