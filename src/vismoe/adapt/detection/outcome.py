"""The report of a fine-tuned detector on the test split: metrics, tables, figures and the model card."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vismoe.data import MAX_LEVEL, Data
from vismoe.files import counted
from vismoe.inference import evaluate
from vismoe.parallel import resolve_device
from vismoe.tasks import Detection
from vismoe.tasks.detection import BoxEvaluation
from vismoe.training import Run
from vismoe.training.run import MODEL
from vismoe.weights import data_config

from ..splits import Splits


def write_outcome(run: Run, model: nn.Module, splits: Splits, origin: str, workers: int) -> dict[str, Any]:
    """Evaluates a detector on the test split, and writes model, tables, figures and model card into the run folder.

    **Arguments:**

    - `run`: the run folder.
    - `model`: the detector.
    - `splits`: the splits of the set.
    - `origin`: a text for the model card about where the network comes from.
    - `workers`: number of processes that load images; 0: the current process.

    **Returns:** the report. Among its entries are

    - `test`, `validation`: metrics, see `vismoe.tasks.detection.BoxEvaluation`; `validation` is None without a
      validation split.
    - `classes`: for each class its name, number of objects, `ap` and `ap50`.
    - `weakness`: why the network is useless; None if it is not.
    - `images`: number of images of each split; `data`: see `vismoe.data.summarise`.
    """
    task = Detection(splits.test.classes)
    model.to(resolve_device(run.recipe.device))
    validation = _evaluated(model, splits.fitting, task, workers) if splits.validated else None
    evaluation = _evaluated(model, splits.test, task, workers)
    task.save(model.cpu(), run.path / MODEL)
    images = splits.test.val.in_eight_bits(data_config(model).get("max_level", MAX_LEVEL))
    task.report(evaluation, images, run.path)
    report = {
        "score": splits.score,
        "test": evaluation.metrics,
        "weakness": evaluation.weakness,
        "validation": None if validation is None else validation.metrics,
        "classes": [{"class": name, **rates} for name, rates in evaluation.details()["per_class"].items()],
        "images": {
            "train": len(splits.fitting.train_and_val[0]),
            "validation": len(splits.fitting.val) if splits.validated else 0,
            "test": len(splits.test.val),
        },
        "images_per_second": evaluation.images_per_second,
        "load": evaluation.load,
        "origin": origin,
        "data": splits.summary,
    }
    write_card(run.path / MODEL / "README.md", report, splits.summary)
    return report


def _evaluated(model: nn.Module, data: Data, task: Detection, workers: int) -> BoxEvaluation:
    evaluation = evaluate(model, data.val, batch_size=16, workers=workers, task=task)
    assert isinstance(evaluation, BoxEvaluation)
    return evaluation


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """The result on the test split as lines of text."""
    test = report["test"]
    worst = sorted((row for row in report["classes"] if row["objects"]), key=lambda row: row["ap"])
    classes = ", ".join(f"{row['class']} {row['ap']:.4f} ({row['ap50']:.4f})" for row in worst)
    return [
        f"test split: mAP {test['map']:.4f}, AP50 {test['map50']:.4f} on {counted(report['images']['test'], 'image')}",
        f"AP (AP50) by class, worst first: {classes}",
    ]


def _rate(value: float) -> str:
    """A rate as text; NaN means that there is nothing to measure it on."""
    return "no such objects" if math.isnan(value) else f"{value:.4f}"


def write_card(path: Path, report: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Writes a model card, a README.md with front matter for model hubs.

    **Arguments:**

    - `path`: the file.
    - `report`: see `write_outcome`.
    - `summary`: see `vismoe.data.summarise`.
    """
    classes, test, images = report["classes"], report["test"], report["images"]
    names = ", ".join(row["class"] for row in classes[:30]) + (", …" if len(classes) > 30 else "")
    sizes = ", ".join(f"{size} {_rate(test[f'map_{size}'])}" for size in ("small", "medium", "large"))
    rows = sorted((row for row in classes if row["objects"]), key=lambda row: row["ap"])
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: object-detection",
        f"tags: [object-detection, {'mixture-of-experts, ' if report['load'] else ''}vismoe]",
        "---",
        "",
        f"# A detector of {counted(len(classes), 'class', 'classes')}",
        "",
        f"Classes: {names}.",
        "",
        "## Data",
        "",
        f"{counted(images['train'], 'training image')}, {counted(images['validation'], 'validation image')}, "
        f"{counted(images['test'], 'test image')}. Exact and near copies are in one split. "
        f"{len(summary['left_out'])} of the files could not be read. "
        f"Images are {summary['width']['min']} to {summary['width']['max']} pixels wide.",
        "",
        "## Figures",
        "",
        *([f"**Warning:** {report['weakness']}.", ""] if report["weakness"] else []),
        f"On the test split, which was not used for selection: mAP {test['map']:.4f} (COCO's average precision over "
        f"IoU thresholds from 0.5 to 0.95), AP50 {test['map50']:.4f}. By size of the objects, below 32², between, and "
        f"above 96² pixels: {sizes}.",
        "",
        "| class, worst first | test objects | AP | AP50 |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['class'].replace('|', '/')} | {row['objects']} | {row['ap']:.3f} | {row['ap50']:.3f} |"
            for row in rows
        ),
        "",
        "## Use",
        "",
        "For images like those that it was trained on. It finds only objects of these classes. For images of another "
        "kind, or from another camera, the figures above are not valid: evaluate it on such images first. A score is "
        "no probability: choose the smallest score to act on by precision_recall.png and classes.csv of the run.",
        "",
        "## Origin",
        "",
        report["origin"],
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
