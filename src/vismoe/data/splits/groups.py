"""Groups of images that a column of the table names (patient, video, site): they stay on one side of a split."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..image_set import Data, ImageSet

GROUP = re.compile(
    "(patient|subject|person|participant|individual|donor|animal|case|study|series|slide|specimen|video|clip|scene|"
    "sequence|recording|session|visit|site|hospital|centre|center|clinic|laboratory|lab|device|scanner|camera|location|"
    "plot|field)(s|ids?|names?|numbers?|num|nr|no|code|key)?"
)
"""A word of a column's name that says what several images are often taken of: such images are more alike than those of
different ones."""


@dataclass(frozen=True)
class SharedGroups:
    """A column some of whose groups are on both sides of a split. `groups`: number of its groups; `shared`: number of
    images to evaluate on whose group is trained on too; `evaluated`: number of all images to evaluate on."""

    column: str
    groups: int
    shared: int
    evaluated: int


def check_column(data: Data, column: str, option: str = "group_column") -> None:
    """Raises ValueError for a column that the set's table does not have. `option`: what it was named by."""
    for part in data.train_and_val:
        if column not in part.columns:
            columns = ", ".join(part.columns) or "none beside file_name and the labels"
            raise ValueError(
                f"{option}={column!r}: {data.name} has no such column in a metadata.csv; there are {columns}"
            )


def check_groups(data: Data, fewest: int) -> None:
    """Raises ValueError where the set's `group_column` is not in its table, or has fewer groups than there are splits
    (`fewest`). An image without a value is a group of its own."""
    column = data.group_column
    if column is None:
        return
    check_column(data, column)
    values = [value for part in data.train_and_val for value in part.columns[column]]
    named, unnamed = {value for value in values if value}, values.count("")
    if len(named) + unnamed < fewest:
        found = f"one value, {next(iter(named))!r}" if len(named) == 1 else f"{len(named)} values"
        raise ValueError(
            f"group_column={column!r}: {data.name} has {found} in it, and each of {fewest} splits needs one of its "
            "own: name another column, or add images of others"
        )


def joined_groups(data: Data, copies: Sequence[int]) -> list[int]:
    """The group of each image of a set, those of `train` before those of `val`: copies are together, and so are images
    with one value of the set's `group_column`. Groups are numbered in the order of their first images.

    **Arguments:** `copies`: (N,) the group of copies of each image.
    """
    if data.group_column is None:
        return list(copies)
    values = [value for part in data.train_and_val for value in part.columns[data.group_column]]
    return join(copies, values)


def join(copies: Sequence[int], values: Sequence[str]) -> list[int]:
    """Groups in which images are together that are in one group of `copies` or have one of the `values`; an empty value
    joins nothing."""
    from scipy.sparse import coo_array  # its import takes half a second
    from scipy.sparse.csgraph import connected_components

    nodes: dict[int | str, int] = {}  # of groups of copies and of values, behind those of the images
    edges = [
        (image, len(copies) + nodes.setdefault(key, len(nodes)))
        for image, keys in enumerate(zip(copies, values, strict=True))
        for key in keys
        if key != ""
    ]
    size = len(copies) + len(nodes)
    rows, columns = zip(*edges, strict=True)
    component = connected_components(
        coo_array(([1] * len(edges), (rows, columns)), shape=(size, size)), directed=False
    )[1]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(number, len(numbers)) for number in component[: len(copies)].tolist()]


def shared_groups(train: ImageSet, val: ImageSet, column: str) -> SharedGroups | None:
    """How many images to evaluate on have the value of an image to train on; None where none has."""
    trained, evaluated = set(train.columns.get(column, ())) - {""}, val.columns.get(column, ())
    shared = sum(value in trained for value in evaluated)
    return SharedGroups(column, len(trained.union(evaluated) - {""}), shared, len(evaluated)) if shared else None


def find_group_column(data: Data, fewest: int) -> SharedGroups | None:
    """The column of a set's table, not chosen as its `group_column`, that looks like one of groups and has groups on
    both sides of the split: by its name, and by values that repeat. The one that the most images share; None where
    there is none. `fewest`: number of groups below which it could not be split by."""
    if data.group_column is not None or data.train is None:
        return None
    found = []
    for column in data.val.columns:
        counts = Counter(value for part in data.train_and_val for value in part.columns.get(column, ()) if value)
        repeats = fewest <= len(counts) < counts.total()
        if repeats and _names_a_group(column) and (shared := shared_groups(data.train, data.val, column)):
            found.append(shared)
    return max(found, key=lambda each: (each.shared, each.groups), default=None)


def format_group_column(found: SharedGroups) -> str:
    """What `find_group_column` found, in words, with the option that helps."""
    name = found.column
    return (
        f"{found.shared:,} of {found.evaluated:,} images to evaluate on have a value of the column {name!r} that is "
        f"also trained on, with which figures may be too good: --group-column {name} keeps each of its "
        f"{found.groups:,} groups in one split"
    )


def _names_a_group(column: str) -> bool:
    """Whether a word of a column's name is one of GROUP: patient, patient_id, PatientID, video name, …"""
    return any(GROUP.fullmatch(word.lower()) for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column))
