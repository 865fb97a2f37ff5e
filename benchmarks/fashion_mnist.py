"""Fashion-MNIST: a V-MoE, its dense twin and a small CNN, each over seeds, on the 10,000 pictures of its test part.

    python benchmarks/fashion_mnist.py            # what is missing of three seeds, two runs at a time, a thread each
    python benchmarks/fashion_mnist.py --table    # the table of what is there

Appends a row a finished run to results/fashion_mnist.csv and skips what is there; a run that was stopped goes on from
its last checkpoint. A row has the processor time of the run's last sitting, start and evaluations included.
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
    """One run in this process, and its row."""
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
    """Train what is missing and print the table.

    Args:
        seeds: Of each recipe.
        jobs: Runs at a time.
        runs: Where the run folders go.
        table: Train nothing.
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
