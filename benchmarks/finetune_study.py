"""What fine-tuning a trained ViT gains, and whether experts help: arms × seeds × sets, the same rules for all.

    python benchmarks/finetune_study.py --parent vit-s14 --sets sets          # what is missing; about 9 minutes a run
    python benchmarks/finetune_study.py --parent vit-s14 --sets sets --table

`benchmarks/vit_s14_parent.py` makes the parent, `benchmarks/finetune_sets.py` the sets. A seed draws split, new weights
and order; test pictures of `openclipart` are a fifth, of `emoji` those of another drawing style. Appends a row a
finished run to results/finetune.csv and skips what is there.
"""

import resource
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro
from table import Table

from vismoe.adapt import Options, finetune

RESULTS = Table(Path(__file__).parent / "results" / "finetune.csv")
ARMS: dict[str, dict[str, Any]] = {
    "frozen + linear": {"train": "head", "sparse": False},
    "dense": {"sparse": False},
    "sparse": {},
    "sparse, low-rank": {"experts": "low-rank"},
}


def run_one(parent: Path, data: Path, arm: str, seed: int, out: Path) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    done = finetune(Options(str(data), str(parent), seed=seed, **ARMS[arm]), out, tell=print)
    after, report = resource.getrusage(resource.RUSAGE_SELF), done.report
    shutil.rmtree(out)  # half a gigabyte of checkpoints and weights
    used = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60
    return {
        "set": data.name,
        "arm": arm,
        "seed": seed,
        "top1": round(report["test"]["top1"], 4),
        "mean_recall": round(report["mean_recall"], 4),
        "probe": round(report["probe"]["test"], 4),
        "pictures": report["pictures"]["test"],
        "minutes": report["minutes"],
        "cpu_minutes": round(used, 1),
        "peak_megabytes": after.ru_maxrss // 1024,
    }


def print_table() -> None:
    print("| set | arm | seeds | top-1, mean | each | standard deviation | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = RESULTS.rows()
    for name in sorted({row["set"] for row in found}):
        for arm in ARMS:
            own = sorted((row for row in found if (row["set"], row["arm"]) == (name, arm)), key=lambda row: row["seed"])
            if own:
                scores = [float(row["top1"]) for row in own]
                spread = f"{stdev(scores):.4f}" if len(scores) > 1 else "–"
                each = " ".join(f"{score:.4f}" for score in scores)
                minutes = mean(float(row["minutes"]) for row in own)
                print(f"| {name} | {arm} | {len(own)} | {mean(scores):.4f} | {each} | {spread} | {minutes:.1f} |")


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
        row = run_one(parent, sets / name, arm, seed, out)
        RESULTS.append(row)
        print(row, flush=True)
    print_table()


if __name__ == "__main__":
    tyro.cli(main)
