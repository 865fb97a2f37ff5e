"""Detectors that `vismoe finetune` trains on sets with boxes: arms × seeds, with the same rules for all.

    python benchmarks/detection_study.py --sets bccd boxes/trees boxes/stickers --parent vit-s14 --jobs 2
    python benchmarks/detection_study.py --sets bccd boxes/trees boxes/stickers --table    # only prints the table

`benchmarks/vit_s14_parent.py` makes the parent, `benchmarks/detection_sets.py` the sets `trees` and `stickers`. A seed
determines the split, unless the set has one, new weights, order and augmentation. Appends one row per finished run to
results/detection.csv, and skips runs that have a row. Several of these commands may run at a time: a run that another
one is making is skipped.
"""

import fcntl
import itertools
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import tyro
from processes import in_processes
from table import Table

from vismoe.adapt import Options, finetune
from vismoe.data.images import read_image
from vismoe.inference import Predictor
from vismoe.training import Run, Status
from vismoe.training.run import SPLIT
from vismoe.weights import data_config

RESULTS = Path(__file__).parent / "results" / "detection.csv"
ARMS = {
    "scratch-dense": {"sparse": False},
    "scratch-sparse": {"sparse": True},
    "vit-dense": {"sparse": False},
    "vit-sparse": {"sparse": True},
}
FROM_PARENT = ("vit-dense", "vit-sparse")
KEEPING = "their tokens are kept"
"""End of the line that `finetune` logs before it computes the tokens of frozen blocks."""
WARM_UP, TIMED = 2, 10
"""Numbers of predictions."""


@dataclass(frozen=True)
class Study:
    """One run of the study."""

    set: str
    arm: str
    seed: int
    group_column: str | None = None
    epochs: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """The run's key in the table."""
        return tuple("" if value is None else str(value) for value in astuple(self))


KEY = tuple(field.name for field in fields(Study))


class CPUMinutes:
    """CPU minutes of this process until now, and those in which `finetune` keeps tokens."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.kept = 0.0

    @property
    def now(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return (used.ru_utime + used.ru_stime) / 60

    def log(self, text: str) -> None:
        print(text, flush=True)
        if text.endswith(KEEPING):
            self.began = self.now

    def on_status(self, status: Status) -> None:
        """The first status ends the time. It comes after a few steps: at most 20, or a twentieth of all."""
        if self.began is not None:
            self.kept, self.began = self.now - self.began, None


def run_one(study: Study, data: Path, parent: Path | None, out: Path, csv: Path, threads: int) -> dict[str, Any] | None:
    """Makes one run, in a process of its own, and appends its row; None if another process makes it or has made it."""
    torch.set_num_threads(threads)
    with _claimed(out) as is_free:
        if not is_free or study.key in Table(csv).done(*KEY):
            return None
        shutil.rmtree(out, ignore_errors=True)  # of a killed run, whose CPU minutes are not known
        started, minutes = time.monotonic(), CPUMinutes()
        source = str(parent) if study.arm in FROM_PARENT else None
        options = Options(
            str(data), source, seed=study.seed, group_column=study.group_column, epochs=study.epochs, **ARMS[study.arm]
        )
        done = finetune(options, out, log=minutes.log, on_status=minutes.on_status)
        row = dict(zip(KEY, study.key, strict=True)) | {
            "cpu_minutes": round(minutes.now, 2),
            "kept_minutes": round(minutes.kept, 2),
            "minutes": round((time.monotonic() - started) / 60, 2),
        }
        row |= figures(done.run, done.report) | speed(done.run, data)
        Table(csv).append(row)
    return row


@contextmanager
def _claimed(out: Path) -> Iterator[bool]:
    """Whether no other process makes this run; none begins it in this context."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


def figures(run: Run, report: dict[str, Any]) -> dict[str, Any]:
    """The recipe and the metrics of a finished run."""
    validation, test = report["validation"] or {}, report["test"]
    classes = "; ".join(f"{each['class']} {each['ap50']:.4f}" for each in report["classes"])
    return {
        "steps": run.recipe.steps,
        "batch_size": run.recipe.batch_size,
        "train_images": report["images"]["train"],
        "test_images": report["images"]["test"],
        "validation_map": _rounded(validation.get("map")),
        "validation_map50": _rounded(validation.get("map50")),
        "map": _rounded(test["map"]),
        "map50": _rounded(test["map50"]),
        "ap50_of_classes": classes,
    }


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def speed(run: Run, data: Path) -> dict[str, Any]:
    """The input size, and the time from a decoded test image to its boxes, in milliseconds: the median CPU time of one
    thread, in the form that `vismoe predict` runs."""
    predictor = Predictor(str(run.path))
    _, height, width = data_config(predictor.model)["input_size"]
    files = itertools.islice(itertools.cycle(run.read(SPLIT)["test"]), WARM_UP + TIMED)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for image in [read_image(data / file) for file in files]:
        began = time.process_time()
        predictor.predict(image)
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return {"input_size": f"{height} × {width}", "milliseconds": round(1e3 * median(times[WARM_UP:]), 1)}


def print_table(csv: Path, wanted: Sequence[Study]) -> None:
    """Prints means over seeds, and in brackets the smallest and the largest value."""
    found = {tuple(row[name] for name in KEY): row for row in Table(csv).rows()}
    print("| set | arm | seeds | input | test mAP | test AP50 | CPU minutes | of these for kept tokens | ms an image |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, arm in dict.fromkeys((study.set, study.arm) for study in wanted):
        runs = [study for study in wanted if (study.set, study.arm) == (name, arm)]
        rows = [found[study.key] for study in runs if study.key in found]
        if rows:
            cells = [", ".join(dict.fromkeys(row["input_size"] for row in rows))]
            cells += [_spread(rows, column) for column in ("map", "map50")]
            columns = ("cpu_minutes", "kept_minutes", "milliseconds")
            known = {column: [float(row[column]) for row in rows if row[column]] for column in columns}
            cells += [f"{mean(known[column]):.1f}" if known[column] else "" for column in columns]
            print(f"| {name} | {arm} | {len(rows)} | {' | '.join(cells)} |")


def _spread(rows: Sequence[dict[str, str]], column: str) -> str:
    values = [float(row[column]) for row in rows]
    return f"{mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main(
    sets: tuple[Path, ...],
    parent: Path | None = None,
    arms: tuple[str, ...] = tuple(ARMS),
    seeds: tuple[int, ...] = (0, 1, 2),
    group_column: str | None = None,
    epochs: int | None = None,
    runs: Path = Path("runs/detection_study"),
    csv: Path = RESULTS,
    jobs: int = 1,
    threads: int = 1,
    table: bool = False,
) -> None:
    """Make the missing runs and print the table.

    Args:
        sets: Folders of the sets; the name of a folder is that of its set.
        parent: Model folder of the trained network, for the arms vit-dense and vit-sparse.
        arms: Names of the arms.
        seeds: Seeds of each arm.
        group_column: Column with groups of images that stay in one split.
        epochs: Number of epochs, to try the script; default: chosen by the rules. Such runs have rows of their own.
        runs: Folder of the run folders, which are kept; the folder of an interrupted run is removed, and it begins
            again, so that its CPU minutes are right.
        csv: The file of the rows.
        jobs: Number of runs at a time.
        threads: Number of threads of each run.
        table: Only print the table.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise SystemExit(f"unknown arms: {', '.join(unknown)}; accepted are {', '.join(ARMS)}")
    if len({data.name for data in sets}) < len(sets):
        raise SystemExit("several sets have the same name: rename a folder")
    folders = {data.name: data for data in sets}
    wanted = [Study(name, arm, seed, group_column, epochs) for seed in seeds for name in folders for arm in arms]
    done = Table(csv).done(*KEY)
    left = [study for study in wanted if study.key not in done and not table]
    if parent is None and any(study.arm in FROM_PARENT for study in left):
        raise SystemExit(f"the arms {', '.join(FROM_PARENT)} need --parent")
    calls = [(study, folders[study.set], parent, runs / _folder(study), csv, threads) for study in left]
    for study_row in in_processes(jobs, run_one, calls):
        print("skipped: another process makes or has made this run" if study_row is None else study_row, flush=True)
    print_table(csv, wanted)


def _folder(study: Study) -> str:
    return "-".join(filter(None, study.key))


if __name__ == "__main__":
    tyro.cli(main)
