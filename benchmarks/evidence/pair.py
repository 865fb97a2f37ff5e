"""The decisive pair again, by anybody: dense and sparse of one width, seed 0, beside the rows of the study.

PYTHONPATH=benchmarks python -m evidence.pair              # under an hour on two cores, packages and pictures included
PYTHONPATH=benchmarks python -m evidence.pair --width 128  # the width at which experts help: twice the steps' time
"""

from pathlib import Path
from typing import Literal

import tyro
from table import Table

from .families import DENSE_1, SPARSE_32
from .runs import KEY, SEEDS, key_of, queue
from .study import TABLE, command, hours
from .tasks import DECISIVE, open_task
from .work import missing, work

SHOWN = ("val_loss_25", "val_loss_50", "val_loss_100", "top1_100", "familiar_val_loss_100", "familiar_top1_100")
SHOWN += ("cpu_seconds",)


def main(root: Path = Path("runs/evidence-pair"), jobs: int = 2, width: Literal[64, 128] = 64) -> None:
    """Train both and print them beside the study's.

    Args:
        root: Where packages, pictures, views and runs go, and pair.csv.
        jobs: Runs at a time.
        width: Of the trunk.
    """
    which = [("decisive", DECISIVE, family.name, str(width), str(SEEDS[0])) for family in (DENSE_1, SPARSE_32)]
    runs = [run for run in queue(TABLE.rows()) if run.key[:4] + run.key[5:] in which]
    if len(runs) < len(which):
        raise SystemExit(f"{TABLE.path} does not say yet how they are trained: runs that come first are missing")
    own = Table(root / "pair.csv")
    open_task(DECISIVE, root)
    work(lambda: missing(runs, own, KEY), command(root, own.path), jobs, lambda left: hours(left, TABLE.rows()), False)
    for run in runs:
        for where, table in (("again", own), ("study", TABLE)):
            row = next((row for row in table.rows() if key_of(row) == run.key), None)
            figures = ", ".join(f"{name} {row[name]}" for name in SHOWN) if row else "no row yet"
            print(f"{run.family.name}, {where}: {figures}")


if __name__ == "__main__":
    tyro.cli(main)
