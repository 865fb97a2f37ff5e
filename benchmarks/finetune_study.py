"""What fine-tuning a trained ViT gains, and whether experts help: arms × seeds × sets, the same rules for all.

    python benchmarks/finetune_study.py --parent vit-s14 --sets sets          # what is missing; about 9 minutes a run
    python benchmarks/finetune_study.py --parent vit-s14 --sets sets --table

`benchmarks/vit_s14_parent.py` makes the parent, `benchmarks/finetune_sets.py` the sets. A seed draws split, new weights
and order; test pictures of `openclipart` are a fifth, of `emoji` those of another drawing style. Appends a row a
finished run to results/finetune.csv and skips what is there.
"""

import multiprocessing
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from table import Table

from vismoe.adapt import L2_GRID, Options, features, finetune, ridge
from vismoe.adapt.parts import open_parts
from vismoe.adapt.start import open_start

RESULTS = Table(Path(__file__).parent / "results" / "finetune.csv")
FEW = 25
FEW_SHOT = f"frozen + {FEW} shots"
ARMS: dict[str, dict[str, Any]] = {
    FEW_SHOT: {},
    "frozen + linear": {"train": "head", "sparse": False},
    "dense": {"sparse": False},
    "sparse": {},
    "sparse, low-rank": {"experts": "low-rank"},
}


def run_one(parent: Path, data: Path, arm: str, seed: int, out: Path) -> dict[str, Any]:
    """A run, in a process of its own, and its row."""
    began = time.monotonic()
    figures = few_shot(parent, data, seed) if arm == FEW_SHOT else adapted(parent, data, arm, seed, out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (
        {"set": data.name, "arm": arm, "seed": seed}
        | figures
        | {
            "minutes": round((time.monotonic() - began) / 60, 2),
            "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 1),
            "peak_megabytes": used.ru_maxrss // 1024,
        }
    )


def adapted(parent: Path, data: Path, arm: str, seed: int, out: Path) -> dict[str, Any]:
    report = finetune(Options(str(data), str(parent), seed=seed, **ARMS[arm]), out, tell=print).report
    shutil.rmtree(out)  # half a gigabyte of checkpoints and weights
    return {
        "top1": round(report["test"]["top1"], 4),
        "mean_recall": round(report["mean_recall"], 4),
        "probe": round(report["probe"]["test"], 4),
        "pictures": report["pictures"]["test"],
    }


def few_shot(parent: Path, data: Path, seed: int) -> dict[str, Any]:
    """The closed form of `vismoe fewshot` on up to FEW pictures a class; the regularisation is chosen on the validation
    part."""
    parts = open_parts(str(data), seed, 0.1)
    fitting, classes = parts.fitting, len(parts.fitting.classes)
    assert fitting.train is not None
    model = open_start(str(parent), False, classes, None, torch.device("cpu"))
    order = torch.randperm(len(fitting.train), generator=torch.Generator().manual_seed(seed))
    drawn = [order[fitting.train.labels[order] == number][:FEW] for number in range(classes)]
    shown = fitting.train.subset(torch.cat(drawn).tolist())
    weight, bias = ridge(features(model, shown), shown.labels, classes, L2_GRID)
    answers = [
        [(features_of.double() @ w.T + b).argmax(1) for w, b in zip(weight, bias, strict=True)]
        for features_of in (features(model, part) for part in (fitting.val, parts.test.val))
    ]
    hits = torch.stack([(answer == fitting.val.labels).double().mean() for answer in answers[0]])
    said, labels = answers[1][int((hits == hits.max()).nonzero()[-1])], parts.test.val.labels
    recalls = [(said[labels == number] == number).double().mean().item() for number in labels.unique()]
    return {
        "top1": round((said == labels).double().mean().item(), 4),
        "mean_recall": round(mean(recalls), 4),
        "probe": "",
        "pictures": len(labels),
    }


def print_table() -> None:
    print("| set | arm | top-1, mean | of each seed | standard deviation | mean recall | CPU minutes | peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    found = RESULTS.rows()
    for name in sorted({row["set"] for row in found}):
        for arm in ARMS:
            own = sorted((row for row in found if (row["set"], row["arm"]) == (name, arm)), key=lambda row: row["seed"])
            if own:
                scores = [float(row["top1"]) for row in own]
                spread = f"{stdev(scores):.4f}" if len(scores) > 1 else "–"
                each = " ".join(f"{score:.4f}" for score in scores)
                recall, minutes, peak = (
                    mean(float(row[column]) for row in own)
                    for column in ("mean_recall", "cpu_minutes", "peak_megabytes")
                )
                told = f"{recall:.4f} | {minutes:.0f} | {peak / 1024:.1f}"
                print(f"| {name} | {arm} | {mean(scores):.4f} | {each} | {spread} | {told} |")


def main(
    parent: Path,
    sets: Path,
    names: tuple[str, ...] = ("openclipart", "emoji"),
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: Path = Path("runs/finetune_study"),
    table: bool = False,
) -> None:
    """Run what is missing and print the table.

    Args:
        parent: Model folder of the trained network.
        sets: Folder of the sets.
        names: Which of them.
        seeds: Of each arm.
        runs: Where the run folders go; an interrupted one goes on.
        table: Run nothing.
    """
    done = RESULTS.done("set", "arm", "seed")
    left = [(name, arm, seed) for seed in seeds for name in names for arm in ARMS if (name, arm, str(seed)) not in done]
    for name, arm, seed in left if not table else []:
        out = runs / f"{name}-{arm.replace(' ', '').replace(',', '-')}-{seed}"
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # its memory is its own
            row = alone.submit(run_one, parent, sets / name, arm, seed, out).result()
        RESULTS.append(row)
        print(row, flush=True)
    print_table()


if __name__ == "__main__":
    tyro.cli(main)
