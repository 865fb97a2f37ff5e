"""Groups of images that a column of the metadata names (patient, video, site). A group stays in one split."""

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
"""Words in column names that suggest groups: images of one patient, video or camera are more similar than others."""


@dataclass(frozen=True)
class SharedGroups:
    """A column with groups that are in both the training and the validation split.

    - `column`: name of the column.
    - `groups`: number of groups.
    - `shared`: number of validation images whose group has training images.
    - `evaluated`: number of validation images.
    """

    column: str
    groups: int
    shared: int
    evaluated: int


def check_column(data: Data, column: str, option: str = "group_column") -> None:
    """Checks that the metadata has a column.

    **Arguments:**

    - `data`: the data set.
    - `column`: name of the column.
    - `option`: name of the option in the error message; default "group_column".

    **Raises:** ValueError if a split has no such column.
    """
    for split in data.train_and_val:
        if column not in split.columns:
            columns = ", ".join(split.columns) or "none except file_name and the labels"
            raise ValueError(
                f"{option}={column!r}: {data.name} has no such column in a metadata.csv; its columns are {columns}"
            )


def check_groups(data: Data, fewest: int) -> None:
    """Checks that the `group_column`, if there is one, exists and has enough groups.

    **Arguments:**

    - `data`: the data set.
    - `fewest`: smallest accepted number of groups: the number of splits. Each image without a value counts as a group.

    **Raises:** ValueError if the column is missing, or has fewer groups.
    """
    column = data.group_column
    if column is None:
        return
    check_column(data, column)
    values = [value for split in data.train_and_val for value in split.columns[column]]
    named, unnamed = {value for value in values if value}, values.count("")
    if len(named) + unnamed < fewest:
        given = f"one value, {next(iter(named))!r}," if len(named) == 1 else f"{len(named)} values"
        raise ValueError(
            f"group_column={column!r}: {data.name} has {given} in this column, but {fewest} splits need at least "
            f"{fewest}: choose another column, or add images with other values"
        )


def joined_groups(data: Data, copies: Sequence[int]) -> list[int]:
    """The groups of images that must stay in one split: copies, and images with the same value in the `group_column`.

    **Arguments:**

    - `data`: the data set.
    - `copies`: (N,), the group of copies of each image, first those of `train`, then those of `val`
      (`Duplicates.groups`).

    **Returns:** (N,), the group of each image. Groups are numbered in the order of their first images.
    """
    if data.group_column is None:
        return list(copies)
    values = [value for split in data.train_and_val for value in split.columns[data.group_column]]
    return join(copies, values)


def join(copies: Sequence[int], values: Sequence[str]) -> list[int]:
    """Joins groups: images with the same number in `copies`, or the same text in `values`, are in one group. An empty
    text joins nothing."""
    from scipy.sparse import coo_array  # its import takes half a second
    from scipy.sparse.csgraph import connected_components

    nodes: dict[int | str, int] = {}  # numbers of the nodes for copies and values; they follow those of the images
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


def format_unnamed(data: Data) -> str | None:
    """A text about the images without a value in the `group_column`; None if there are none."""
    if data.group_column is None:
        return None
    unnamed = sum(list(split.columns[data.group_column]).count("") for split in data.train_and_val)
    if not unnamed:
        return None
    images = "1 image has" if unnamed == 1 else f"{unnamed:,} images have"
    return f"{images} no {data.group_column}: each counts as a group of its own"


def count_groups(values: Sequence[str]) -> int:
    """Number of groups among the values of a group column. Each image without a value is a group of its own."""
    return len(set(values) - {""}) + list(values).count("")


def shared_groups(train: ImageSet, val: ImageSet, column: str) -> SharedGroups | None:
    """Counts the validation images that share a group with training images.

    **Arguments:**

    - `train`, `val`: the training and validation images.
    - `column`: name of the column with the groups.

    **Returns:** the counts; None if no group is shared.
    """
    trained, evaluated = set(train.columns.get(column, ())) - {""}, val.columns.get(column, ())
    shared = sum(value in trained for value in evaluated)
    return SharedGroups(column, len(trained.union(evaluated) - {""}), shared, len(evaluated)) if shared else None


def find_group_column(data: Data, fewest: int) -> SharedGroups | None:
    """Finds a column that looks like a group column, but is not used as one, and whose groups are in both splits.

    A column looks like one if its name has a word such as "patient", and its values repeat.

    **Arguments:**

    - `data`: the data set.
    - `fewest`: smallest number of groups that the column must have: the number of splits.

    **Returns:** the column whose groups the most validation images share with training images; None if there is none,
    or the data set has a `group_column`.
    """
    if data.group_column is not None or data.train is None:
        return None
    candidates = []
    for column in data.val.columns:
        counts = Counter(value for split in data.train_and_val for value in split.columns.get(column, ()) if value)
        repeats = fewest <= len(counts) < counts.total()
        if repeats and _names_a_group(column) and (shared := shared_groups(data.train, data.val, column)):
            candidates.append(shared)
    return max(candidates, key=lambda each: (each.shared, each.groups), default=None)


def format_group_column(shared: SharedGroups) -> str:
    """A warning about the result of `find_group_column`, with the option that helps."""
    name = shared.column
    return (
        f"{shared.shared:,} of {shared.evaluated:,} evaluation images have a value in the column {name!r} that "
        f"training images have too, so metrics may be too good: --group-column {name} keeps each of the "
        f"{shared.groups:,} groups in one split"
    )


def _names_a_group(column: str) -> bool:
    """Whether a word of a column's name matches GROUP, as in patient, patient_id, PatientID, video name."""
    return any(GROUP.fullmatch(word.lower()) for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column))
