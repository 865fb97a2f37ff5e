"""`vismoe finetune` without --from beside timm's small MobileNetV3, trained from scratch on the same split as long.

    python benchmarks/from_scratch.py --sets sets
    python benchmarks/from_scratch.py --sets sets --table

`benchmarks/finetune_sets.py` makes the sets. Both networks have the recipe that `finetune` chooses: augmentation,
learning rate, schedule and batch size. MobileNetV3 takes images of 64 pixels, or 128 where finetune's network does, and
as many steps as take the same processor time. Appends a row a network to results/from_scratch.csv and skips the sets
that are there: up to half an hour of processor time each.
"""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
from processes import in_processes
from table import Table

from vismoe.adapt import Options, finetune
from vismoe.adapt.finetune import _cached
from vismoe.adapt.splits import Splits, open_splits
from vismoe.inference import evaluate
from vismoe.tasks import ClassEvaluation, wilson_interval
from vismoe.training import Recipe, fit
from vismoe.training.state import build

RESULTS = Table(Path(__file__).parent / "results" / "from_scratch.csv")
KEY = ("set", "seed")
MOBILENET = "timm:mobilenetv3_small_100"
TIMED_STEPS = 40
EVALUATIONS = 20


def run_one(sets: Path, key: tuple[str, str], out: Path, threads: int) -> list[dict[str, Any]]:
    """Both networks on a set, in a process of its own, and their rows."""
    torch.set_num_threads(threads)
    (name, seed), began = key, time.process_time()
    shutil.rmtree(out, ignore_errors=True)
    ours = finetune(Options(str(sets / name), seed=int(seed)), out / "ours", log=print)
    seconds = time.process_time() - began
    splits = open_splits(str(sets / name), int(seed), 0.1)
    recipe = _mobilenet_recipe(ours.run.recipe, splits, seconds, out)
    began = time.process_time()
    data = _cached(splits.fitting, build(recipe, splits.fitting))
    mobilenet = fit(recipe, out / "mobilenet", data=data)
    used = time.process_time() - began
    rows = []
    for run, took in ((ours.run, seconds), (mobilenet, used)):
        network: Any = run.load_model()
        test, validation = evaluate(network, splits.test.val), evaluate(network, splits.fitting.val)
        assert isinstance(test, ClassEvaluation)
        right, images = int(test.right.sum()), len(test.labels)
        low, high = wilson_interval(right, images)
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {
                "network": network.pretrained_cfg["architecture"],
                "image_size": network.pretrained_cfg["input_size"][1],
                "steps": max(line["step"] for line in run.metrics),
                "cpu_minutes": round(took / 60, 1),
                "validation": round(validation.score, 4),
                "top1": round(test.score, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "test_images": images,
            }
        )
    shutil.rmtree(out)
    return rows


def _mobilenet_recipe(recipe: Recipe, splits: Splits, seconds: float, out: Path) -> Recipe:
    """The recipe with MobileNetV3, and with the number of steps that take `seconds` of processor time."""
    side = 128 if splits.image_side > 64 else 64
    own = replace(recipe, model=MOBILENET, image_size=side, patience=0, evaluate_every=TIMED_STEPS, steps=TIMED_STEPS)
    data = _cached(splits.fitting, build(own, splits.fitting))
    took = []
    for steps in (TIMED_STEPS, 3 * TIMED_STEPS):  # the difference is without what a run does once
        began = time.process_time()
        fit(replace(own, steps=steps, evaluate_every=steps, checkpoint_every=0), out / f"timed-{steps}", data=data)
        took.append(time.process_time() - began)
    steps = int(seconds / ((took[1] - took[0]) / (2 * TIMED_STEPS)))
    return replace(own, steps=steps, warmup_steps=max(1, steps // 10), evaluate_every=max(1, steps // EVALUATIONS))


def print_table() -> None:
    print("| set | network | image size | steps | CPU minutes | top-1 | 95 % interval | test images |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in RESULTS.rows():
        keys = ("set", "network", "image_size", "steps", "cpu_minutes", "top1")
        print("|", " | ".join(row[key] for key in keys), f"| {row['low']} to {row['high']} | {row['test_images']} |")


def main(
    sets: Path,
    names: tuple[str, ...] = ("fashion6000", "cells", "openclipart"),
    seeds: tuple[int, ...] = (0,),
    runs: Path = Path("runs/from_scratch"),
    jobs: int = 2,
    table: bool = False,
) -> None:
    """Run what is missing and print the table.

    Args:
        sets: Folder of the sets.
        names: Which of them.
        seeds: Of split, weights, order and augmentation.
        runs: Where the run folders go.
        jobs: Runs at a time, which share the cores.
        table: Run nothing.
    """
    done = RESULTS.done(*KEY)
    left = [key for key in ((name, str(seed)) for seed in seeds for name in names) if key not in done and not table]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for rows in in_processes(jobs, run_one, [(sets, key, runs / "-".join(key), threads) for key in left]):
        for row in rows:
            RESULTS.append(row)
            print(row, flush=True)
    print_table()


if __name__ == "__main__":
    tyro.cli(main)
