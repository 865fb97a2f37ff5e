"""How much fine-tuning a trained ViT gains, and whether experts help: arms × seeds × sets, with the same rules for all.

    python benchmarks/finetune_study.py --parent vit-s14 --sets sets --trial    # trials of learning rates, one seed
    python benchmarks/finetune_study.py --parent vit-s14 --sets sets            # arms with the best rate, three seeds
    python benchmarks/finetune_study.py --parent vit-s14 --sets sets --table    # only prints the table

`benchmarks/vit_s14_parent.py` makes the parent, `benchmarks/finetune_sets.py` the sets. A seed determines split, new
weights and order of images. The test split is a fifth of `openclipart`, and for `emoji` another drawing style. Learning
rates are chosen on the validation split. Appends one row per finished run to results/finetune.csv, and skips runs that
have a row: 10 to 15 processor minutes each with bfloat16.
"""

import os
import resource
import shutil
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from over_seeds import told
from processes import in_processes
from table import Table

from vismoe.adapt import Options, finetune
from vismoe.adapt.classification.initial_model import open_start
from vismoe.adapt.splits import open_splits
from vismoe.features import L2_GRID, features, ridge

RESULTS = Table(Path(__file__).parent / "results" / "finetune.csv")
FEW = 25
FEW_SHOT = f"frozen + {FEW} shots"
ARMS: dict[str, dict[str, Any]] = {
    FEW_SHOT: {},
    "frozen + linear": {"train": "head", "sparse": False},
    "dense": {"sparse": False},
    "sparse": {"sparse": True, "experts": "full"},
    "sparse, low-rank": {"sparse": True, "experts": "low-rank"},
}
FROZEN, TRAINED = tuple(ARMS)[:2], tuple(ARMS)[2:]
RATES = (1e-4, 2e-4, 4e-4)
EPOCHS = 6


@dataclass(frozen=True)
class Study:
    """One run of the study."""

    set: str
    arm: str
    seed: int
    learning_rate: float | None = None
    epochs: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """The run's key in the table."""
        return tuple("" if value is None else str(value) for value in astuple(self))


KEY = tuple(field.name for field in fields(Study))


def run_one(parent: Path, data: Path, study: Study, out: Path, threads: int) -> dict[str, Any]:
    """Makes one run, in a separate process, and returns its row."""
    torch.set_num_threads(threads)
    began = time.monotonic()
    figures = few_shot(parent, data, study.seed) if study.arm == FEW_SHOT else adapted(parent, data, study, out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (
        dict(zip(KEY, study.key, strict=True))
        | figures
        | {
            "minutes": round((time.monotonic() - began) / 60, 2),
            "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 1),
            "peak_megabytes": used.ru_maxrss // 1024,
        }
    )


def adapted(parent: Path, data: Path, study: Study, out: Path) -> dict[str, Any]:
    options = Options(
        str(data),
        str(parent),
        learning_rate=study.learning_rate,
        epochs=study.epochs,
        seed=study.seed,
        **ARMS[study.arm],
    )
    report = finetune(options, out, log=print).report
    shutil.rmtree(out)  # a hundred megabytes of weights and more
    return {
        "validation": round(report["validation"]["top1"], 4),
        "validation_loss": round(report["validation"]["loss"], 4),
        "top1": round(report["test"]["top1"], 4),
        "mean_recall": round(report["mean_recall"], 4),
        "probe": round(report["probe"]["test"], 4),
        "images": report["images"]["test"],
    }


def few_shot(parent: Path, data: Path, seed: int) -> dict[str, Any]:
    """The closed form of `vismoe fewshot` on up to FEW images per class. The regularisation is chosen on the validation
    split."""
    parts = open_splits(str(data), seed, 0.1)
    fitting, classes = parts.fitting, len(parts.fitting.classes)
    assert fitting.train is not None
    model = open_start(str(parent), classes, None, torch.device("cpu"))
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
        "validation": round(hits.max().item(), 4),
        "validation_loss": "",
        "top1": round((said == labels).double().mean().item(), 4),
        "mean_recall": round(mean(recalls), 4),
        "probe": "",
        "images": len(labels),
    }


def trials(names: tuple[str, ...]) -> list[Study]:
    """Every trained arm with every learning rate, one seed. An arm's rate is chosen by these."""
    return [Study(name, arm, 0, rate, EPOCHS) for rate in RATES for name in names for arm in TRAINED]


def chosen_rate(name: str, arm: str) -> float:
    """The learning rate that was best on the validation split in this set's trials of the arm."""
    row_of_key = {tuple(row[column] for column in KEY): row for row in RESULTS.rows()}
    keys = {rate: Study(name, arm, 0, rate, EPOCHS).key for rate in RATES}
    tried = {rate: float(row_of_key[key]["validation"]) for rate, key in keys.items() if key in row_of_key}
    if not tried:
        raise SystemExit(f"no trial of {arm} on {name} yet: run with --trial first")
    return max(tried, key=lambda rate: tried[rate])


def decisive(names: tuple[str, ...], seeds: tuple[int, ...]) -> list[Study]:
    frozen = [Study(name, arm, seed) for seed in seeds for name in names for arm in FROZEN]
    rates = {(name, arm): chosen_rate(name, arm) for name in names for arm in TRAINED}
    return frozen + [Study(*key, seed, rate, EPOCHS) for seed in seeds for key, rate in rates.items()]


def print_trials(names: tuple[str, ...]) -> None:
    found = {tuple(row[name] for name in KEY): row for row in RESULTS.rows()}
    print(f"| arm | rate | {' | '.join(f'{name}: top-1 of validation, test' for name in names)} |")
    print(f"| --- | --- |{' --- |' * len(names)}")
    for arm in TRAINED:
        for rate in RATES:
            own = [found.get(Study(name, arm, 0, rate, EPOCHS).key) for name in names]
            if any(own):
                cells = [f"{float(row['validation']):.4f}, {float(row['top1']):.4f}" if row else "" for row in own]
                print(f"| {arm} | {rate:g} | {' | '.join(cells)} |")


def print_table(names: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    found = {tuple(row[name] for name in KEY): row for row in RESULTS.rows()}
    print("| set | arm | rate | top-1, mean | of each seed | standard deviation | mean recall |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    runs = decisive(names, seeds)
    for name in names:
        for arm in (*FROZEN, *TRAINED):
            own = [found[run.key] for run in runs if (run.set, run.arm) == (name, arm) and run.key in found]
            if own:
                scores = [float(row["top1"]) for row in own]
                spread = f"{stdev(scores):.4f}" if len(scores) > 1 else "–"
                each = " ".join(f"{score:.4f}" for score in scores)
                recall, rate = mean(float(row["mean_recall"]) for row in own), own[0]["learning_rate"]
                print(f"| {name} | {arm} | {rate} | {mean(scores):.4f} | {each} | {spread} | {recall:.4f} |")
    for name in names:
        own = [run for run in runs if run.set == name and run.key in found]
        scores_of = {arm: {run.seed: float(found[run.key]["top1"]) for run in own if run.arm == arm} for arm in TRAINED}
        for arm in TRAINED[1:]:
            pairs = [
                top1 - scores_of["dense"][seed] for seed, top1 in scores_of[arm].items() if seed in scores_of["dense"]
            ]
            if pairs:
                print(f"{name}: {arm} − dense {told(pairs)}")


def main(
    parent: Path,
    sets: Path,
    names: tuple[str, ...] = ("openclipart", "emoji"),
    seeds: tuple[int, ...] = (0, 1, 2),
    runs: Path = Path("runs/finetune_study"),
    jobs: int = 2,
    trial: bool = False,
    table: bool = False,
) -> None:
    """Make the missing runs and print the table.

    Args:
        parent: Model folder of the trained network.
        sets: Folder of the sets.
        names: Names of the sets to use.
        seeds: Seeds of each arm.
        runs: Folder of the run folders; an interrupted run is resumed.
        jobs: Number of runs at a time, which share the cores.
        trial: Make the trials instead of the decisive runs.
        table: Only print the table.
    """
    wanted = trials(names) if trial else decisive(names, seeds)
    done = RESULTS.done(*KEY)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    left = [study for study in wanted if study.key not in done and not table]
    calls = [(parent, sets / study.set, study, runs / _folder(study), threads) for study in left]
    for row in in_processes(jobs, run_one, calls):
        RESULTS.append(row)
        print(row, flush=True)
    if trial:
        print_trials(names)
    else:
        print_table(names, seeds)


def _folder(study: Study) -> str:
    return "-".join(study.key).replace(" ", "").replace(",", "-")


if __name__ == "__main__":
    tyro.cli(main)
