"""Compares the sparse network and its dense twin on the demo's digits, over seeds.

    python benchmarks/digits_twins.py            # three seeds of each: about 7 minutes on two cores

Both have the same trunk, initial weights, order of images, augmentation and recipe. Writes results/digits_twins.csv and
prints the paired difference with its 95 % interval (Student's t over seeds). The validation split has 450 images, so
one image is 0.22 points.
"""

import statistics
import tempfile
from pathlib import Path

import tyro
from over_seeds import told
from table import Table

import vismoe
from vismoe.data import open_data
from vismoe.recipes.demo import nearest_neighbours

RESULTS = Path(__file__).parent / "results" / "digits_twins.csv"


def main(seeds: tuple[int, ...] = (0, 1, 2), steps: int | None = None, out: Path = RESULTS) -> None:
    """Train both twins with each seed."""
    overrides = {} if steps is None else {"steps": steps}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for recipe in ("digits", "digits_dense"):
                run = vismoe.train(recipe, Path(folder) / f"{recipe}-{seed}", seed=seed, **overrides)
                rows.append(
                    {"recipe": recipe, "seed": seed, "steps": run.recipe.steps, "top1": round(run.summary["top1"], 5)}
                )
                print(*rows[-1].values(), sep="\t", flush=True)
    Table(out).write(rows)
    report(rows)


def report(rows: list[dict[str, object]]) -> None:
    """Prints the means, and the paired difference with its interval."""
    by_recipe = {
        name: [float(str(row["top1"])) for row in rows if row["recipe"] == name] for name in ("digits", "digits_dense")
    }
    for name, values in by_recipe.items():
        print(f"{name:13} mean {statistics.mean(values):.4f}, range {min(values):.4f} to {max(values):.4f}")
    differences = [sparse - dense for sparse, dense in zip(*by_recipe.values(), strict=True)]
    print(f"sparse − dense: {told(differences)}")
    print(f"3-nearest-neighbours on pixels: {nearest_neighbours(open_data('digits')):.4f}")


if __name__ == "__main__":
    tyro.cli(main)
