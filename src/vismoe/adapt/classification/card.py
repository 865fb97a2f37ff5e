"""The model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vismoe.data import format_imbalance
from vismoe.files import counted
from vismoe.weights.folders.format import of_transformers, read_config

WORST = 10


def write_card(path: Path, report: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Writes a model card, a README.md with front matter for model hubs.

    **Arguments:**

    - `path`: the file.
    - `report`: see `write_outcome`.
    - `summary`: see `vismoe.data.summarise`.
    """
    classes, test, images = summary["classes"], report["test"], report["images"]
    names = ", ".join(entry["name"] for entry in classes[:30]) + (", …" if len(classes) > 30 else "")
    score = report["score"]
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in test.items())
    worst = sorted((row for row in report["classes"] if row["images"]), key=lambda row: row["recall"])[:WORST]
    low, high = report["interval"]
    lines = [
        "---",
        f"library_name: {_library(path.parent)}",
        "pipeline_tag: image-classification",
        f"tags: [image-classification, {'mixture-of-experts, ' if report['load'] else ''}vismoe]",
        "---",
        "",
        f"# A classifier of {len(classes)} classes",
        "",
        f"Classes{' (an image may have several)' if summary['multi_label'] else ''}: {names}.",
        "",
        "## Data",
        "",
        f"{counted(images['train'], 'training image')}, {counted(images['validation'], 'validation image')}, "
        f"{counted(images['test'], 'test image')}. Exact and near copies are in one split{_of_groups(report)}. "
        f"{format_imbalance(summary).capitalize()}; {len(summary['left_out'])} of the "
        f"files could not be read. Images are {summary['width']['min']} to {summary['width']['max']} pixels wide.",
        "",
        "## Figures",
        "",
        *([f"**Warning:** {report['weakness']}.", ""] if report["weakness"] else []),
        f"On the test split, which was not used for selection: {score.replace('_', ' ')} {test[score]:.4f}"
        f"; right on {report['right']} of {images['test']} (95 % interval {low:.4f} to {high:.4f}). "
        f"All: {figures}.",
        "",
        *(
            [f"A linear classifier on the frozen initial network: {report['probe']['test']:.4f}.", ""]
            if report["probe"]
            else []
        ),
        *([f"{note[0].upper()}{note[1:]}.", ""] if (note := report["temperature_note"]) else []),
        "| class, worst first | test images | recall | 95 % interval |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['class'].replace('|', '/')} | {row['images']} | {row['recall']:.3f} "
            f"| {row['low']:.3f} to {row['high']:.3f} |"
            for row in worst
        ),
        "",
        "## Use",
        "",
        "For images like those that it was trained on. It always answers with one of its classes, whatever the image "
        "shows. For images of another kind, or from another camera, the figures above are not valid: evaluate it on "
        "such images first.",
        "",
        "## Origin",
        "",
        report["origin"],
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def _of_groups(report: Mapping[str, Any]) -> str:
    """A text about groups in the split, and about their accuracy on the test split; "" without groups."""
    if (column := report["group_column"]) is None:
        return ""
    below = sum(group["below"] for group in report["groups"])
    groups = counted(len(report["groups"]), "group")
    return (
        f", and so are images of one {column} ({groups} in the test split, {below:,} of them significantly below the "
        "rest)"
    )


def _library(folder: Path) -> str:
    return "transformers" if of_transformers(read_config(folder)) else "timm"
