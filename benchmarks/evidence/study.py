"""The study's queue: trains what is missing, a row a finished run, safe to kill.

    PYTHONPATH=benchmarks python -m evidence.study                 # two runs at a time, a thread each
    PYTHONPATH=benchmarks python -m evidence.study --last pilot    # no more than what choices are made by
    PYTHONPATH=benchmarks python -m evidence.study --left          # what is missing, as far as it is known yet

Rows go to results/evidence.csv; what came out for each view to results/evidence/*.npz, for intervals. A run that was
stopped goes on from its last checkpoint. Pictures and views are fetched and made where they are not there.
"""

import hashlib
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from table import Table
from torch.nn import functional as F

from vismoe.data import ImageSet
from vismoe.inference import evaluate
from vismoe.training import fit

from .families import multiplications
from .figures import FAMILIAR, UNFAMILIAR
from .runs import KEY, Rows, Run, Stage, key_of, queue, too_short
from .tasks import open_task
from .transfer import transfer
from .work import RESULTS, missing, named, work

TABLE = Table(RESULTS / "evidence.csv")
QUARTERS = (25, 50, 75, 100)
NEWEST = 12
"""Rows that tell how fast the machine is."""


def train_one(run: Run, root: Path, views: Path) -> dict[str, Any]:
    """Trains it, in this process, and gives its row; what comes out for each view goes to the folder `views`."""
    torch.set_num_threads(1)
    task = open_task(run.task, root)
    data = task.validation if run.chooses else task.data
    also = {} if data is task.validation else {FAMILIAR.part: task.validation.val}
    out = root / "runs" / run.name
    used = _Used(out.with_name(out.name + ".cpu"))
    done = fit(run.recipe, out, lambda status: used.write(), True, data, run.network, also)
    used.write()
    network = done.load_model()
    held_out = [line for line in done.metrics if "val_loss" in line]
    trunk, classifier = multiplications(network)
    row: dict[str, Any] = dict(zip(KEY, run.key, strict=True))
    row |= {
        "recipe": _hash(run.recipe.to_json()),
        "steps": run.steps,
        "trunk": trunk,
        "classifier": classifier,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "cpu_seconds": round(used.total),
    }
    for share, line in zip(QUARTERS, held_out[:3] + held_out[-1:], strict=True):
        row |= {f"{name}_{share}": round(line[name], 5) for name in ("val_loss", "top1", "top5")}
        for name in ("val_loss", "top1"):
            value = line.get(f"{FAMILIAR.part}/{name}")
            row[f"{FAMILIAR.prefix}{name}_{share}"] = "" if value is None else round(value, 5)
    row |= {"neighbours": "", "probe": ""} if run.chooses else transfer(network, root)
    if not run.chooses:
        views.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(views / f"{run.name}.npz", **_view_by_view(network, {UNFAMILIAR.part: data.val} | also))
    return row


def forget(run: Run, root: Path) -> None:
    """Removes what a run has left, once its row is written."""
    out = root / "runs" / run.name
    out.with_name(out.name + ".cpu").unlink()
    shutil.rmtree(out)


class _Used:
    """The processor time of all sittings of a run, from here on, kept beside it."""

    def __init__(self, path: Path):
        self.path, self.start = path, _now()
        self.before = float(path.read_text()) if path.exists() else 0.0
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def total(self) -> float:
        return self.before + _now() - self.start

    def write(self) -> None:
        aside = self.path.with_name(f".{self.path.name}")
        aside.write_text(f"{self.total:.1f}")
        aside.replace(self.path)


def _now() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _view_by_view(network: torch.nn.Module, parts: dict[str, ImageSet]) -> dict[str, np.ndarray]:
    """Of each view of each part its loss, and whether it is recognised."""
    made = {}
    for name, part in parts.items():
        found = evaluate(network, part)
        loss = F.cross_entropy(found.scores, found.labels, reduction="none")
        made |= {f"{name}_loss": loss.numpy().astype(np.float16), f"{name}_right": found.right.numpy()}
    return made


def _hash(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def named_twice(runs: list[Run], table: Table) -> None:
    """Gives those that are trained already, under a plainer name, that one's row and views."""
    rows, views = {key_of(row): row for row in table.rows()}, table.path.with_suffix("")
    for run in runs:
        if run.key in rows or run.plain.key not in rows:
            continue
        if (found := views / f"{run.plain.name}.npz").exists():
            shutil.copyfile(found, views / f"{run.name}.npz")
        own = dict(zip(KEY, run.key, strict=True)) | {"recipe": _hash(run.recipe.to_json())}
        table.append(rows[run.plain.key] | own)


def hours(runs: list[Run], rows: Rows) -> float:
    """Processor hours that runs will take: a step's time is a line over its multiplications, drawn through all rows and
    raised to the newest ones, which are likelier this machine's; where there are few rows, a guess."""
    counts = np.array([int(row["trunk"]) + int(row["classifier"]) for row in rows])
    taken = np.array([float(row["cpu_seconds"]) / int(row["steps"]) for row in rows])
    line = np.array([1e-8, 0.2])
    if len(set(counts)) > 1:
        line = np.polyfit(counts, taken, 1, w=1 / taken)
        line *= np.median((taken / np.polyval(line, counts))[-NEWEST:])
    return sum(run.steps * float(np.polyval(line, sum(multiplications(run.network())))) for run in runs) / 3600


def main(
    root: Path = Path("runs/evidence"),
    jobs: int = 2,
    last: Stage = "cnn",
    left: bool = False,
    one: str = "",
    out: Path = TABLE.path,
) -> None:
    """Train what is missing.

    Args:
        root: Where packages, pictures, views and runs go.
        jobs: Runs at a time.
        last: The last stage to be run. What the pilots choose belongs into RULES.md before the decisive runs.
        left: Train nothing, say what is missing.
        one: The name of a run in the queue, to be trained in this process, whatever is there.
        out: The table that its row goes to, a .csv file; what came out for each view goes to a folder beside it.
    """
    if out.suffix != ".csv" or not (one or out == TABLE.path):
        raise SystemExit(f"--out {out}: a .csv file, for the row of --one")
    if one:
        run = named(one, queue(TABLE.rows()))
        row = train_one(run, root, out.with_suffix(""))
        Table(out).append(row)
        forget(run, root)
        print(row, flush=True)
        return

    def missing_now() -> list[Run]:
        if not left:
            named_twice(queue(TABLE.rows(), last), TABLE)
        runs = missing(queue(TABLE.rows(), last), TABLE, KEY)
        runs = [run for run in runs if run.plain == run or run.plain not in runs]
        for name in {run.task for run in runs} if not left else ():
            open_task(name, root)  # its views are made once, before two processes want them
        return runs

    work(missing_now, command(root, TABLE.path), jobs, lambda runs: hours(runs, TABLE.rows()), left)
    if against := too_short(TABLE.rows()):
        raise SystemExit(f"nothing is decided before whole runs are long enough (RULES.md): {'; '.join(against)}")


def command(root: Path, out: Path) -> list[str]:
    """What trains one run, but for its name."""
    return ["evidence.study", "--root", str(root), "--out", str(out), "--one"]


if __name__ == "__main__":
    tyro.cli(main)
