"""Writes CSV files."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

FORMULA = re.compile(r"[=+\-@\t]")
"""The first character of cells that spreadsheets run as formulas (OWASP, *CSV Injection*)."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_table(rows: Sequence[Mapping[str, Any]], file: TextIO | TextIOBase, digits: int | None = None) -> None:
    """Writes rows as CSV, with a header.

    Text that spreadsheets would run as a formula gets an apostrophe before it: a class or file name that begins with =,
    +, -, @, and is no number. Programs that look for such a name have to remove the apostrophe. NaN is an empty cell.

    **Arguments:**

    - `rows`: the rows, at least one, all with the same columns.
    - `file`: the file, opened with `newline=""`.
    - `digits`: number of digits after the decimal point; default None: all.
    """
    writer = csv.writer(file, lineterminator="\n")
    columns = list(rows[0])
    writer.writerow(map(_text, columns))
    writer.writerows([_cell(row[name], digits) for name in columns] for row in rows)


def save_table(rows: Sequence[Mapping[str, Any]], path: Path, digits: int | None = None) -> None:
    """Writes rows as a CSV file, see `write_table`. Characters that UTF-8 does not have are written as `\\udcNN`."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        write_table(rows, file, digits)


def _cell(value: Any, digits: int | None) -> Any:
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return ""
    return value if digits is None else round(value, digits)


def _text(value: str) -> str:
    return f"'{value}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else value
