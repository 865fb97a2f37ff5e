"""The CSV files of results/: whole rows, whenever a script is killed."""

import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Table:
    """Rows of one CSV file, the first line of which names the columns: those of the first row that is written."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, str]]:
        """Every row; none where there is no file. A last line that was cut off is left out, which stderr says."""
        return list(csv.DictReader(io.StringIO(self._lines()[0], newline="")))

    def done(self, *columns: str) -> set[tuple[str, ...]]:
        """What the rows have in some columns: which measurements are there."""
        return {tuple(row[name] for name in columns) for row in self.rows()}

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row by one write, so that a killed script, or another that appends too, leaves whole lines.

        **Raises:** ValueError for columns that are not the file's.
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
        """Puts these rows in the place of all that was there."""
        self._replace(_text(list(rows[0]), rows, header=True))

    def _lines(self) -> tuple[str, str]:
        """The whole lines, and what of one stands behind them."""
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
