"""Reads `metadata.csv` and `metadata.jsonl`, the tables of Hugging Face's datasets: a row for each image, with the
columns file_name and label, and any others."""

import ast
import csv
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images import Unreadable

METADATA, METADATA_LINES = "metadata.csv", "metadata.jsonl"
TABLES = (METADATA, METADATA_LINES)
UNREAD_TABLES = ("metadata.parquet",)
"""Tables that Hugging Face's datasets read, but vismoe does not. They are an error: their labels would be lost."""
FILE, LABEL, LABELS = "file_name", "label", "labels"


@dataclass(frozen=True)
class Row:
    """The row of an image file.

    - `labels`: the labels; None if the table has no column for them.
    - `several`: whether the image may have more than one label.
    - `columns`: the values of the other columns.
    - `divided`: the cell with the labels, if a separator divides it into several; otherwise "".
    - `repeated`: whether several rows give the image different labels.
    """

    labels: tuple[str, ...] | None
    several: bool
    columns: Mapping[str, str]
    divided: str = ""
    repeated: bool = False


def read_tables(
    root: Path, folders: Iterable[str], files: Collection[str], links: Collection[str]
) -> tuple[dict[str, dict[str, Row]], list[Unreadable]]:
    """Reads the tables of a data set.

    **Arguments:**

    - `root`: the folder of the data set.
    - `folders`: folders that may have a table, relative to `root`.
    - `files`: the image files, relative to `root`.
    - `links`: links that are not followed, relative to `root`; the tables may name them.

    **Returns:** for each folder with a table, its rows by file; and the names in tables that are neither in `files` nor
    in `links`.

    **Raises:** ValueError for a file that is not such a table, and for two tables in one folder.
    """
    tables: dict[str, dict[str, Row]] = {}
    faults, file_names = [], set(files)
    for folder in dict.fromkeys(folders):
        path = find_table(root / folder)
        if path is not None:
            tables[folder] = {}
            for name, row in read_metadata(path).items():
                file = posixpath.normpath(posixpath.join(folder, name))
                if name.startswith("/") or file.startswith("../"):
                    faults.append(Unreadable(name, f"named in {path.name}, but outside the folder"))
                elif file in file_names:
                    tables[folder][file] = row
                elif file not in links:
                    faults.append(Unreadable(file, f"named in {path.name}, but no such image exists"))
    return tables, faults


def find_table(folder: Path) -> Path | None:
    """The path of the table in a folder, CSV or JSON lines; None if there is none.

    **Raises:** ValueError if there are both, and for a table in a format that is not read.
    """
    if unread := [name for name in UNREAD_TABLES if (folder / name).is_file()]:
        raise ValueError(f"{folder / unread[0]} is not read: write it as {METADATA} or {METADATA_LINES}")
    tables = [path for name in TABLES if (path := folder / name).is_file() and not path.is_symlink()]
    if len(tables) > 1:
        raise ValueError(f"{folder} has both {METADATA} and {METADATA_LINES}: remove one")
    return tables[0] if tables else None


def read_metadata(path: Path) -> dict[str, Row]:
    """Reads a table.

    In a CSV file the column `label` (or `labels`) has one label, several labels separated by `|`, `;` or commas, or a
    JSON list of labels, for labels with these characters. In JSON lines it is a label or a list of labels; labels are
    not divided. Several rows of one file are merged.

    **Arguments:**

    - `path`: the table.

    **Returns:** the row of each file; files are relative to the folder of the table.

    **Raises:** ValueError for a file that is not such a table.
    """
    rows = _read_lines(path) if path.suffix == ".jsonl" else _read_csv(path)
    if not rows:
        raise ValueError(f"{path} has no rows: expected one for each image")
    return rows


def _read_csv(path: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            column = _label_column(path, names)
            for values in reader:
                if values and len(values) != len(names):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: expected {len(names)} values, found {len(values)}"
                    )
                if values:
                    _add(path, rows, dict(zip(names, values, strict=True)), column)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return rows


def _read_lines(path: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entries = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(entries, dict) or not isinstance(entries.get(FILE), str):
            raise ValueError(
                f'{path}, line {number}: expected an object such as {{"{FILE}": "1.png", "{LABEL}": "cat"}}'
            )
        column = _label_column(path, list(entries))
        if column is not None:  # a JSON list, which `parse_labels` does not divide
            entries[column] = _as_list(path, number, entries[column])
        _add(path, rows, {name: _as_text(value) for name, value in entries.items()}, column)
    return rows


def _as_list(path: Path, number: int, value: Any) -> list[Any]:
    """The labels of a JSON line."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str | int | float) for name in values):
        raise ValueError(f"{path}, line {number}: the label {value!r} is neither a name nor a list of names")
    return values


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _label_column(path: Path, names: list[str]) -> str | None:
    if FILE not in names:
        delimiter = next((repr(sign) for sign in ";\t" if any(sign in name for name in names)), None)
        hint = f": its values are separated by {delimiter}, but must be separated by commas" if delimiter else ""
        raise ValueError(f"{path}: expected the columns {FILE} and {LABEL}, found {', '.join(names) or 'none'}{hint}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(repeated)}")
    if LABEL in names and LABELS in names:
        raise ValueError(f"{path} has both a column {LABEL} and a column {LABELS}: remove one")
    return next((name for name in (LABEL, LABELS) if name in names), None)


def _add(path: Path, rows: dict[str, Row], line: dict[str, str], column: str | None) -> None:
    if not line[FILE].strip():
        raise ValueError(f"{path}: a line has no {FILE}")
    name = posixpath.normpath(line[FILE].strip())
    try:
        labels = None if column is None else parse_labels(line[column])
    except ValueError as error:
        raise ValueError(f"{path}: {column} of {name!r}: {error}") from error
    cell = "" if column is None else line[column].strip()
    divided = cell if len(labels or ()) > 1 and not cell.startswith("[") and column == LABEL else ""
    repeated = False
    if labels is not None and name in rows:
        before = rows[name]
        divided = before.divided or divided
        repeated = before.repeated or (column == LABEL and {*labels} != {*(before.labels or ())})
        labels = tuple(dict.fromkeys((*(before.labels or ()), *labels)))
    columns = {key: value for key, value in line.items() if key not in (FILE, column)}
    rows[name] = Row(labels, column == LABELS or len(labels or ()) > 1, columns, divided, repeated)


def parse_labels(cell: str) -> tuple[str, ...]:
    """The labels in a cell of a CSV file, without repetitions.

    **Raises:** ValueError for a list with values that are not names.
    """
    text = cell.strip()
    names = re.split(r"[|;,]", text)
    if text.startswith("[") and text.endswith("]"):
        for read in (json.loads, ast.literal_eval):  # literal_eval reads Python lists, which pandas writes
            try:
                names = read(text)
                break
            except (ValueError, SyntaxError, RecursionError):
                continue
        else:
            raise ValueError(f"{text} is not a list of names")
    if not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"{text} has values that are not names")
    labels = (str(name).strip() for name in names)
    return tuple(dict.fromkeys(label for label in labels if label))
