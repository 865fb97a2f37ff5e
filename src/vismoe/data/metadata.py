"""`metadata.csv`, as Hugging Face's datasets have it: a line an image, with its file_name, label, and what else."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

METADATA = "metadata.csv"
FILE, LABEL, LABELS = "file_name", "label", "labels"


@dataclass(frozen=True)
class Row:
    """What is said of a file: `labels`, None where there is no such column; `several`: whether there may be more than
    one; `columns`: everything else."""

    labels: tuple[str, ...] | None
    several: bool
    columns: Mapping[str, str]


def read_metadata(path: Path) -> dict[str, Row]:
    """What is said of each file, by its path below the folder of `path`.

    The column `label` (or `labels`) holds one label, several that `|`, `;` or commas separate, or a JSON list of them,
    for names that have such signs themselves. Lines of one file are put together.

    **Raises:** ValueError for a file that is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            if FILE not in names:
                raise ValueError(f"{path}: expected the columns {FILE} and {LABEL}, found {', '.join(names) or 'none'}")
            if LABEL in names and LABELS in names:
                raise ValueError(f"{path} has both a column {LABEL} and a column {LABELS}: which one is it?")
            column = next((name for name in (LABEL, LABELS) if name in names), None)
            found: dict[str, Row] = {}
            for line in reader:
                if None in line or None in line.values():
                    raise ValueError(f"{path}, line {reader.line_num}: expected {len(names)} values")
                _add(found, line, column)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not found:
        raise ValueError(f"{path} names no files")
    return found


def _add(found: dict[str, Row], line: dict[str, str], column: str | None) -> None:
    name = Path(line[FILE].strip()).as_posix()
    labels = None if column is None else parse_labels(line[column])
    if labels is not None and name in found:
        labels = tuple(dict.fromkeys((*(found[name].labels or ()), *labels)))
    columns = {key: value for key, value in line.items() if key not in (FILE, column)}
    found[name] = Row(labels, column == LABELS or len(labels or ()) > 1, columns)


def parse_labels(cell: str) -> tuple[str, ...]:
    """The labels of a cell, each once."""
    text = cell.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            parts = json.loads(text)
        except json.JSONDecodeError:
            parts = text[1:-1].replace("'", "").replace('"', "").split(",")  # a Python list, as pandas writes it
    else:
        parts = re.split(r"[|;,]", text)
    labels = (str(part).strip() for part in parts)
    return tuple(dict.fromkeys(label for label in labels if label))
