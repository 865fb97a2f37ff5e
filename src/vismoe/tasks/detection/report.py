"""The report of a detector: tables and figures in a run folder."""

from pathlib import Path
from typing import Any

from vismoe.data import ImageSet
from vismoe.files import save_table

from .evaluation import BoxEvaluation
from .figures import draw_errors, draw_precision_recall
from .mistakes import KINDS, Mistakes, find_mistakes
from .worst import draw_worst


def write_report(evaluation: BoxEvaluation, images: ImageSet, folder: Path) -> None:
    """Writes tables and figures of an evaluation. Errors are counted at the threshold of each class with the largest F1
    on these images.

    - `classes.csv`: rates of each class.
    - `false_positives.csv`, `false_positives.png`: false positives of each class by kind, and missed objects.
    - `precision_recall.png`: precision against recall; no file without objects.
    - `worst_images.png`: the images with the most errors; no file without errors.

    **Arguments:**

    - `evaluation`: the evaluation.
    - `images`: the images that were evaluated.
    - `folder`: the folder, which exists.
    """
    mistakes = find_mistakes(evaluation)
    save_table(class_rows(evaluation, mistakes), folder / "classes.csv", digits=4)
    save_table(error_rows(evaluation, mistakes), folder / "false_positives.csv", digits=4)
    draw_precision_recall(evaluation, mistakes, folder / "precision_recall.png")
    draw_errors(evaluation, mistakes, folder / "false_positives.png")
    draw_worst(evaluation, mistakes, images, folder / "worst_images.png")


def class_rows(evaluation: BoxEvaluation, mistakes: Mistakes) -> list[dict[str, Any]]:
    """One row per class: number of objects, average precision over IoU thresholds, at 0.5 and by size, and recall and
    precision at the threshold with the largest F1. NaN without such objects."""
    return [
        {
            "class": each.name,
            "objects": each.objects,
            "ap": each.ap,
            "ap50": each.ap50,
            "ap_small": each.ap_small,
            "ap_medium": each.ap_medium,
            "ap_large": each.ap_large,
            "threshold": point.threshold,
            "recall": point.recall,
            "precision": point.precision,
            "f1": point.f1,
        }
        for each, point in zip(evaluation.per_class, mistakes.points, strict=True)
    ]


def error_rows(evaluation: BoxEvaluation, mistakes: Mistakes) -> list[dict[str, Any]]:
    """One row per class: number of objects, of objects found, and of errors of each kind."""
    return [
        {"class": each.name, "objects": each.objects, "found": int(found)} | dict(zip(KINDS, counts, strict=True))
        for each, found, counts in zip(
            evaluation.per_class, mistakes.right.tolist(), mistakes.counts.tolist(), strict=True
        )
    ]
