"""A summary of a data set, computed before training."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vismoe.files import counted

from ..image_set import Data, ImageSet
from ..images import Unreadable
from .box_summary import count_boxes, format_boxes, summarise_boxes
from .duplicates import Duplicates
from .grouped_split import conflicts, leakage
from .groups import count_groups

SHOWN, CLASSES = 3, 10
"""Number of examples, and of classes, that are printed."""


def summarise(data: Data, duplicates: Duplicates) -> dict[str, Any]:
    """Summarises a data set: sizes, classes, duplicates, leaks.

    **Arguments:**

    - `data`: the data set.
    - `duplicates`: the duplicates among its images, first those of `train`, then those of `val`.

    **Returns:** a dictionary for JSON. "test" is the split `val`. Images are named by their files; without files,
    by split and number. "imbalance": size of the largest class ÷ size of the smallest class with images; "grey",
    "transparent": fractions of the images; "duplicate_groups": number of groups with two or more images; "leaks":
    images of `val` with a copy in `train`; "conflicts": exact copies with different labels; "one_group": classes whose
    images are all of one group, only if the data set has a `group_column`; "boxes": as `summarise_boxes` returns it,
    only if the data set has boxes.

    **Raises:** ValueError if the duplicates are of another number of images.
    """
    fingerprints = duplicates.fingerprints
    total = sum(map(len, data.train_and_val))
    if len(fingerprints) != total:
        raise ValueError(f"duplicates of {len(fingerprints)} images, but {data.name} has {total}")
    names = [
        split.files[index] if split.files else f"{name} {index}"
        for name, split in _named_splits(data)
        for index in range(len(split))
    ]
    training_images = 0 if data.train is None else len(data.train)
    trained, evaluated = (
        [0] * len(data.classes) if split is None else _counts(data, split) for split in (data.train, data.val)
    )
    sizes = [train + val for train, val in zip(trained, evaluated, strict=True) if train + val]
    labels = [_label_names(data, row) for split in data.train_and_val for row in split.labels]
    return (
        {
            "name": data.name,
            "images": {"train": training_images, "test": len(data.val)},
            "multi_label": data.multi_label,
            "classes": [
                {"name": name, "train": train, "test": val}
                for name, train, val in zip(data.classes, trained, evaluated, strict=True)
            ],
            "imbalance": max(sizes) / min(sizes) if sizes else 1.0,
            "width": _spread([entry.width for entry in fingerprints]),
            "height": _spread([entry.height for entry in fingerprints]),
            "grey": sum(entry.grey for entry in fingerprints) / total,
            "transparent": sum(entry.transparent for entry in fingerprints) / total,
            "left_out": [{"file": entry.file, "reason": entry.reason} for entry in data.left_out],
            "notes": list(data.notes),
            "duplicate_groups": sum(number > 1 for number in Counter(duplicates.groups).values()),
            "exact_duplicates": [[names[a], names[b]] for a, b in duplicates.exact],
            "near_duplicates": [[names[a], names[b]] for a, b in duplicates.near],
            "leaks": [
                {"test": names[training_images + val], "train": names[train]}
                for val, train in leakage(data, duplicates)
            ],
            "conflicts": [
                {"files": [names[a], names[b]], "labels": [labels[a], labels[b]]}
                for a, b in conflicts(data, duplicates)
            ],
        }
        | _summary_of_groups(data)
        | ({"boxes": summarise_boxes(data)} if data.has_boxes else {})
    )


def _named_splits(data: Data) -> list[tuple[str, ImageSet]]:
    """Each split with its name in the summary."""
    return [("test" if split is data.val else "train", split) for split in data.train_and_val]


def _counts(data: Data, images: ImageSet) -> list[int]:
    """Number of images of each class."""
    labels = images.labels
    return (labels.sum(0) if data.multi_label else labels.bincount(minlength=len(data.classes))).tolist()


def _summary_of_groups(data: Data) -> dict[str, Any]:
    """The `group_column`, and the classes whose images all have the same value in it; empty without one."""
    column = data.group_column
    if column is None:
        return {}
    values: dict[str, list[str]] = {name: [] for name in data.classes}
    for split in data.train_and_val:
        for label, value in zip(split.labels, split.columns[column], strict=True):
            for name in _label_names(data, label):
                values[name].append(value)
    single = [name for name, of_class in values.items() if len(of_class) > 1 and count_groups(of_class) == 1]
    return {"group_column": column, "one_group": single}


def _label_names(data: Data, label: Tensor) -> list[str]:
    numbers = label.nonzero().ravel().tolist() if data.multi_label else [int(label)]
    return [data.classes[number] for number in numbers]


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    return {"min": min(lengths), "median": round(statistics.median(lengths)), "max": max(lengths)}


def format_summary(summary: dict[str, Any]) -> str:
    """A summary as a few lines of text. The split `val` is called the test split.

    **Arguments:**

    - `summary`: as `summarise` returns it.
    """
    train, evaluated = summary["images"]["train"], summary["images"]["test"]
    classes = summary["classes"]
    width, height = ("{min:g} to {max:g} (median {median:g})".format(**summary[side]) for side in ("width", "height"))
    lines = [
        f"{summary['name']}: {counted(train + evaluated, 'image')}, {train:,} to train and validate on, "
        f"{counted(evaluated, 'test image')}",
        f"{counted(len(classes), 'class', 'classes')}{', several per image' if summary['multi_label'] else ''}: "
        + _first_of([f"{entry['name']} {entry['train']} + {entry['test']}" for entry in classes], CLASSES)
        + f"; {format_imbalance(summary)}",
        f"{width} wide, {height} high; {summary['grey']:.0%} grey, {summary['transparent']:.0%} transparent",
    ]
    if boxes := summary.get("boxes"):
        lines += format_boxes(boxes, CLASSES)
    if left_out := summary["left_out"]:
        lines.append(
            f"left out: {counted(len(left_out), 'file')}: {_first_of([_with_reason(entry) for entry in left_out])}"
        )
    lines += [f"note: {text}" for text in summary.get("notes", ())]
    if summary["duplicate_groups"]:
        exact, near = summary["exact_duplicates"], summary["near_duplicates"]
        lines.append(
            f"duplicates: {len(exact)} exact, {len(near)} near, in {counted(summary['duplicate_groups'], 'group')}: "
            + _first_of([f"{a} = {b}" for a, b in exact] + [f"{a} ≈ {b}" for a, b in near])
        )
    lines += _lines_of_untested(summary)
    if leaks := summary["leaks"]:
        lines.append(
            f"test images with copies among the training images (metrics would be too good): {len(leaks)}: "
            + _first_of([f"{leak['test']} ≈ {leak['train']}" for leak in leaks])
        )
    if conflicting := summary["conflicts"]:
        descriptions = [
            " = ".join(
                f"{file} ({', '.join(labels) or 'no label'})"
                for file, labels in zip(entry["files"], entry["labels"], strict=True)
            )
            for entry in conflicting
        ]
        lines.append(f"copies with different labels: {len(conflicting)}: {_first_of(descriptions)}")
    return "\n".join(lines)


def _lines_of_untested(summary: Mapping[str, Any]) -> list[str]:
    """Lines about classes without test images, and about a test split with a single class."""
    classes, column = summary["classes"], summary.get("group_column")
    untested = [entry["name"] for entry in classes if not entry["test"]]
    if not (summary["images"]["train"] and untested):
        return []
    single = [name for name in untested if name in summary.get("one_group", ())]
    others = [name for name in untested if name not in single]
    of_group = "" if column is None else f" or of the same {column}"
    reasons = [f"{_first_of(single, CLASSES)} (all images of a class are of one {column})"] if single else []
    reasons += [f"{_first_of(others, CLASSES)} (too few images that are not copies{of_group})"] if others else []
    lines = [f"classes without test images: {'; '.join(reasons)}"]
    if len(untested) == len(classes) - 1:
        (tested,) = (entry["name"] for entry in classes if entry["test"])
        lines.append(f"warning: the test split has only the class {tested}: its metrics say nothing about the others")
    return lines


def format_classes(data: Data) -> str:
    """The classes of a data set with their numbers of training images, or of training boxes, as one line of text; ""
    without classes."""
    if not data.classes:
        return ""
    split = data.train_and_val[0]
    counts = zip(data.classes, (count_boxes if data.has_boxes else _counts)(data, split), strict=True)
    several = ", boxes" if data.has_boxes else ", several per image" if data.multi_label else ""
    return f"{counted(len(data.classes), 'class', 'classes')}{several}: " + _first_of(
        [f"{name} {count:,}" for name, count in counts], CLASSES
    )


def format_reasons(left_out: Sequence[Unreadable]) -> str:
    """The reasons why files are left out, each with its count, the most frequent first, as one line of text."""
    counts = Counter(entry.reason for entry in left_out).most_common()
    return _first_of([f"{number} × {reason}" for reason, number in counts])


def format_imbalance(summary: Mapping[str, Any]) -> str:
    """The class imbalance in a summary, as text."""
    times = f"{summary['imbalance']:.3g}"
    return "classes are balanced" if times == "1" else f"the largest class is {times} times the smallest"


def _with_reason(entry: dict[str, str]) -> str:
    return f"{entry['file']} ({entry['reason']})"


def _first_of(entries: Sequence[str], most: int = SHOWN) -> str:
    return ", ".join(entries[:most]) + (f" and {len(entries) - most} more" if len(entries) > most else "")
