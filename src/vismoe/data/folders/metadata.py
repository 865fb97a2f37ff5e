"""`metadata.csv`, as Hugging Face's datasets have it: a row for each image, with file_name, label and other columns."""

import ast
import csv
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images import Unreadable

METADATA = "metadata.csv"
FILE, LABEL, LABELS = "file_name", "label", "labels"


@dataclass(frozen=True)
class Row:
    """The row of a file. `labels`: None where there is no such column; `several`: whether there may be more than one;
    `columns`: the other columns."""

    labels: tuple[str, ...] | None
    several: bool
    columns: Mapping[str, str]


def read_tables(
    root: Path, folders: Iterable[str], files: Collection[str], links: Collection[str]
) -> tuple[dict[str, dict[str, Row]], list[Unreadable]]:
    """The tables of a set, by their folders below `root`, with rows by files below `root`; and the names in them that
    are neither in `files` nor in `links` (links are never followed).

    **Raises:** ValueError for a file that is no such table.
    """
    tables: dict[str, dict[str, Row]] = {}
    faults, file_names = [], set(files)
    for folder in dict.fromkeys(folders):
        path = root / folder / METADATA
        if path.is_file() and not path.is_symlink():
            tables[folder] = {}
            for name, row in read_metadata(path).items():
                file = posixpath.normpath(posixpath.join(folder, name))
                if name.startswith("/") or file.startswith("../"):
                    faults.append(Unreadable(name, f"named in {METADATA}, but leads out of the folder"))
                elif file in file_names:
                    tables[folder][file] = row
                elif file not in links:
                    faults.append(Unreadable(file, f"named in {METADATA}, but there is no such image"))
    return tables, faults


def read_metadata(path: Path) -> dict[str, Row]:
    """The row of each file, by its path below the folder of `path`.

    The column `label` (or `labels`) holds one label, several with `|`, `;` or commas between, or a JSON list of them,
    for names with such signs. Rows of one file are merged.

    **Raises:** ValueError for a file that is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            column = _label_column(path, names)
            rows: dict[str, Row] = {}
            for values in reader:
                if values and len(values) != len(names):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: expected {len(names)} values, found {len(values)}"
                    )
                if values:
                    _add(path, rows, dict(zip(names, values, strict=True)), column)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path} names no files")
    return rows


def _label_column(path: Path, names: list[str]) -> str | None:
    if FILE not in names:
        delimiter = next((repr(sign) for sign in ";\t" if any(sign in name for name in names)), None)
        hint = f": its values are separated by {delimiter}, expected are commas" if delimiter else ""
        raise ValueError(f"{path}: expected the columns {FILE} and {LABEL}, found {', '.join(names) or 'none'}{hint}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(repeated)}")
    if LABEL in names and LABELS in names:
        raise ValueError(f"{path} has both a column {LABEL} and a column {LABELS}: which one is it?")
    return next((name for name in (LABEL, LABELS) if name in names), None)


def _add(path: Path, rows: dict[str, Row], line: dict[str, str], column: str | None) -> None:
    if not line[FILE].strip():
        raise ValueError(f"{path}: a line has no {FILE}")
    name = posixpath.normpath(line[FILE].strip())
    try:
        labels = None if column is None else parse_labels(line[column])
    except ValueError as error:
        raise ValueError(f"{path}: {column} of {name!r}: {error}") from error
    if labels is not None and name in rows:
        labels = tuple(dict.fromkeys((*(rows[name].labels or ()), *labels)))
    columns = {key: value for key, value in line.items() if key not in (FILE, column)}
    rows[name] = Row(labels, column == LABELS or len(labels or ()) > 1, columns)


def parse_labels(cell: str) -> tuple[str, ...]:
    """The labels of a cell, each once.

    **Raises:** ValueError for a list of other values than names.
    """
    text = cell.strip()
    parts = re.split(r"[|;,]", text)
    if text.startswith("[") and text.endswith("]"):
        for read in (json.loads, ast.literal_eval):  # the latter for Python's lists, as pandas writes them
            try:
                parts = read(text)
                break
            except (ValueError, SyntaxError, RecursionError):
                continue
        else:
            raise ValueError(f"{text} is neither names nor a list of them")
    if not all(isinstance(part, str | int | float) for part in parts):
        raise ValueError(f"{text} holds more than names")
    labels = (str(part).strip() for part in parts)
    return tuple(dict.fromkeys(label for label in labels if label))
