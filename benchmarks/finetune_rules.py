"""What `vismoe finetune` chooses by itself, beside the linear classifier that it begins with: sets × seeds.

    python benchmarks/finetune_rules.py --parent vit-s14 --sets sets
    python benchmarks/finetune_rules.py --parent vit-s14 --sets sets --table

`benchmarks/vit_s14_parent.py` makes the parent, `benchmarks/finetune_sets.py` the sets. Appends a row a finished run
to results/finetune_rules.csv and skips what is there: up to 16 processor minutes each. `--rules` names the rows, so
that other rules (another commit) can be run beside.
"""

import os
import resource
import shutil
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from processes import in_processes
from table import Table

from vismoe.adapt import Options, finetune

RESULTS = Table(Path(__file__).parent / "results" / "finetune_rules.csv")
KEY = ("set", "rules", "seed")


def run_one(parent: Path, sets: Path, key: tuple[str, str, str], out: Path, threads: int) -> dict[str, Any]:
    """A run, in a process of its own, and its row."""
    torch.set_num_threads(threads)
    began, (name, _, seed) = time.monotonic(), key
    done = finetune(Options(str(sets / name), str(parent), seed=int(seed)), out, log=print)
    report, used = done.report, resource.getrusage(resource.RUSAGE_SELF)
    row = dict(zip(KEY, key, strict=True)) | {
        "learning_rate": done.run.recipe.learning_rate,
        "steps": max(line["step"] for line in done.run.metrics),
        "kept": report["trained"],
        "probe_validation": round(report["probe"]["validation"], 4),
        "validation": round(report["validation"]["top1"], 4),
        "probe": round(report["probe"]["test"], 4),
        "top1": round(report["test"]["top1"], 4),
        "test_images": report["images"]["test"],
        "minutes": round((time.monotonic() - began) / 60, 2),
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 1),
    }
    shutil.rmtree(out)  # a hundred megabytes of weights and more
    return row


def print_table(names: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    rows = RESULTS.rows()
    print("| set | rules | seeds | linear classifier, mean top-1 | result, mean top-1 | of each seed | CPU minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        for rules in dict.fromkeys(row["rules"] for row in rows):
            own = [row for row in rows if (row["set"], row["rules"]) == (name, rules) and int(row["seed"]) in seeds]
            if own:
                probe, top1, minutes = (
                    mean(float(row[key]) for row in own) for key in ("probe", "top1", "cpu_minutes")
                )
                each = " ".join(f"{row['probe']} → {row['top1']}" for row in own)
                print(f"| {name} | {rules} | {len(own)} | {probe:.4f} | {top1:.4f} | {each} | {minutes:.1f} |")


def main(
    parent: Path,
    sets: Path,
    names: tuple[str, ...] = ("openclipart", "emoji", "cells", "fashion2000"),
    seeds: tuple[int, ...] = (0, 1, 2),
    rules: str = "now",
    runs: Path = Path("runs/finetune_rules"),
    jobs: int = 2,
    table: bool = False,
) -> None:
    """Run what is missing and print the table.

    Args:
        parent: Model folder of the trained network.
        sets: Folder of the sets.
        names: Which of them.
        seeds: Of split, order and augmentation.
        rules: Name of the rows.
        runs: Where the run folders go; an interrupted one goes on.
        jobs: Runs at a time, which share the cores.
        table: Run nothing.
    """
    done = RESULTS.done(*KEY)
    wanted = [(name, rules, str(seed)) for seed in seeds for name in names]
    left = [key for key in wanted if key not in done and not table]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for row in in_processes(jobs, run_one, [(parent, sets, key, runs / "-".join(key), threads) for key in left]):
        RESULTS.append(row)
        print(row, flush=True)
    print_table(names, seeds)


if __name__ == "__main__":
    tyro.cli(main)
