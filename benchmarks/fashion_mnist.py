"""Fashion-MNIST: a V-MoE, its dense twin and a small CNN, over seeds, on the 10,000 images of the test split.

    python benchmarks/fashion_mnist.py            # trains missing runs of three seeds, two at a time, one thread each
    python benchmarks/fashion_mnist.py --table    # only prints the table

Appends one row per finished run to results/fashion_mnist.csv, and skips runs that have a row. An interrupted run is
resumed from its last checkpoint. A row has the processor time since the run was last resumed, including start and
evaluations.
"""

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import tyro
from over_seeds import told
from table import Table

RESULTS = Table(Path(__file__).parent / "results" / "fashion_mnist.csv")
RECIPES = ("fashion_mnist", "fashion_mnist_dense", "fashion_mnist_cnn")


def train_one(recipe: str, seed: int, runs: Path) -> None:
    """Trains one run in this process, and appends its row."""
    import torch

    import vismoe

    torch.set_num_threads(1)
    out = runs / f"{recipe}-{seed}"
    run = vismoe.train(recipe, out, resume=True, seed=seed, device="cpu", checkpoint_every=500, keep_checkpoints=1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"top1": round(run.summary["top1"], 4), "val_loss": round(run.summary["val_loss"], 4)}
    row = {"recipe": recipe, "seed": seed, "steps": run.recipe.steps} | figures
    row["cpu_seconds"] = round(used.ru_utime + used.ru_stime)
    RESULTS.append(row)
    print(row, flush=True)


def print_table() -> None:
    rows = RESULTS.rows()
    found = {recipe: {row["seed"]: row for row in rows if row["recipe"] == recipe} for recipe in RECIPES}
    print("| recipe | seeds | top-1, mean | each | standard deviation | CPU minutes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for recipe, by_seed in found.items():
        if by_seed:
            scores = [float(by_seed[seed]["top1"]) for seed in sorted(by_seed)]
            minutes = mean(float(row["cpu_seconds"]) / 60 for row in by_seed.values())
            spread = f"{stdev(scores):.4f}" if len(scores) > 1 else "–"
            each = " ".join(f"{score:.4f}" for score in scores)
            print(f"| `{recipe}` | {len(scores)} | {mean(scores):.4f} | {each} | {spread} | {minutes:.0f} |")
    sparse, dense = found["fashion_mnist"], found["fashion_mnist_dense"]
    pairs = [float(sparse[seed]["top1"]) - float(dense[seed]["top1"]) for seed in sparse if seed in dense]
    if pairs:
        print(f"sparse − dense {told(pairs)}")


def main(
    seeds: tuple[int, ...] = (0, 1, 2),
    jobs: int = 2,
    runs: Path = Path("runs/fashion_mnist"),
    table: bool = False,
    one: tuple[str, int] | None = None,
) -> None:
    """Train the missing runs and print the table.

    Args:
        seeds: Seeds of each recipe.
        jobs: Number of runs at a time.
        runs: Folder of the run folders.
        table: Only print the table.
        one: A recipe and a seed, to be trained in this process, whatever is there.
    """
    if one is not None:
        train_one(*one, runs)
        return
    done = RESULTS.done("recipe", "seed")
    left = [(recipe, seed) for seed in seeds for recipe in RECIPES if (recipe, str(seed)) not in done]
    left.sort(key=lambda each: each[0] == "fashion_mnist_cnn")  # the twins first

    def start(each: tuple[str, int]) -> None:
        command = [sys.executable, __file__, "--runs", str(runs), "--one", each[0], str(each[1])]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    if not table:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(start, left))
    print_table()


if __name__ == "__main__":
    tyro.cli(main)
