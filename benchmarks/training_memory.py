"""Checks that a long training does not leak memory, data workers or open files.

    python benchmarks/training_memory.py                 # 5,000 steps: about 4 minutes on one core
    python benchmarks/training_memory.py --steps 400     # a first look, too short for a verdict

The digits recipe is trained in a separate process, with two data workers, a checkpoint every 50 steps and an evaluation
every 100. At every status these are measured: the resident memory (RSS) of the process, the sum of its workers' RSS
(most of which they share with the process), the number of workers, and the number of open files. The result is the
median RSS in the last tenth of the run ÷ that in the tenth around 20 % of the run. At the end no worker may be left.
Writes results/training_memory.csv. Linux only: it reads /proc.
"""

import multiprocessing
import os
import re
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import torch
import tyro
from table import Table

import vismoe

RESULTS = Path(__file__).parent / "results" / "training_memory.csv"
LIMIT = 0.02
"""By which share RSS may differ late in the run."""
AFTER = "after the end"


def resident_mb(process: int) -> float:
    """RSS of a process in MB; 0 for a process that is ending."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def children() -> list[int]:
    """Child processes of this process, of all its threads."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(number) for part in lists for number in part.read_text().split()]


def sample(step: str) -> dict[str, str | float]:
    """One row of measurements of this process and its workers."""
    workers = children()
    return {
        "step": step,
        "rss_mb": round(resident_mb(os.getpid()), 1),
        "workers_rss_mb": round(sum(map(resident_mb, workers)), 1),
        "number_of_workers": len(workers),
        "open_files": len(os.listdir("/proc/self/fd")),
    }


def train(out: Path, steps: int, threads: int, **fields: int) -> None:
    """Trains, and writes a row at every status and one after the end."""
    torch.set_num_threads(threads)
    out.unlink(missing_ok=True)
    table = Table(out)
    with tempfile.TemporaryDirectory() as folder:
        vismoe.train(
            "digits",
            Path(folder) / "run",
            lambda status: table.append(sample(str(status.step))),
            steps=steps,
            **fields,
        )
        table.append(sample(AFTER))


def report(rows: list[dict[str, float]], after: dict[str, float], steps: int) -> None:
    """Prints the results and their limits."""
    early = statistics.median(row["rss_mb"] for row in rows if 0.15 <= row["step"] / steps <= 0.25)
    late = statistics.median(row["rss_mb"] for row in rows if row["step"] / steps > 0.9)
    print(f"RSS around 20 % of the run {early:.1f} MB, in its last tenth {late:.1f} MB")
    print(f"ratio {late / early:.4f} (limit {1 - LIMIT} to {1 + LIMIT}); after the end {after['rss_mb']:.1f} MB")
    together = statistics.median(row["workers_rss_mb"] for row in rows)
    print(f"workers together {together:.1f} MB, what they share counted in each")
    times = Counter(int(row["number_of_workers"]) for row in rows)
    alive = ", ".join(f"{number} at {count} of {len(rows)} statuses" for number, count in sorted(times.items()))
    print(f"workers alive: {alive}; after the end {after['number_of_workers']:.0f} (limit 0)")
    most = rows[0]["open_files"]
    print(f"open files: {most:.0f} at step {rows[0]['step']:.0f}", end="")
    for row in rows:
        if row["open_files"] > most:
            most = row["open_files"]
            print(f", grown to {most:.0f} at step {row['step']:.0f}", end="")
    print(f"; {rows[-1]['open_files']:.0f} at the last status, {after['open_files']:.0f} after the end")


def main(
    steps: int = 5000,
    workers: int = 2,
    evaluate_every: int = 100,
    checkpoint_every: int = 50,
    threads: int = 1,
    out: Path = RESULTS,
) -> None:
    """Train in a separate process; write every row and print the results."""
    fields = {"workers": workers, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    process = multiprocessing.get_context("fork").Process(target=train, args=(out, steps, threads), kwargs=fields)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the training ended with exit code {process.exitcode}")
    *samples, last = Table(out).rows()
    rows = [{name: float(value) for name, value in row.items()} for row in samples]
    report(rows, {name: float(value) for name, value in last.items() if name != "step"}, steps)


if __name__ == "__main__":
    tyro.cli(main)
