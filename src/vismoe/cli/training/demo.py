"""vismoe demo"""

from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from vismoe.recipes.demo import Demo, clear, run_demo, twins
from vismoe.training import Recipe

from ..shared.progress import TrainingProgress


def demo(out: Path = Path("runs/demo"), steps: int | None = None, seed: int = 0) -> None:
    """Train a small V-MoE and its dense twin on handwritten digits, and compare them.

    Example: vismoe demo

    Args:
        out: Run folder of the sparse network; that of the dense twin is inside it. An earlier demo there is replaced.
        steps: Number of optimiser steps for each network; default: the recipe's.
        seed: Seed of the initial weights, the order of images and the augmentation.
    """
    console, recipes = Console(), twins(steps, seed)
    if clear(out):
        console.print(f"{out} had an earlier demo, which is replaced", soft_wrap=True)
    console.print(
        "1,797 handwritten digits of 8 × 8 pixels (scikit-learn's); a random quarter is the validation split.\n"
        "A V-MoE with 8 experts in every second block and its dense twin: same trunk, initial weights and recipe.",
        soft_wrap=True,
    )
    with _Progress(console) as progress:
        results = run_demo(recipes, out, progress.next)
    _report(console, results, out)


class _Progress:
    """The progress of several trainings, one after the other."""

    def __init__(self, console: Console):
        self.console, self.current = console, TrainingProgress("", console)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.current.__exit__(None, None, None)

    def next(self, recipe: Recipe) -> "TrainingProgress":
        self.current.__exit__(None, None, None)
        self.current = TrainingProgress(recipe.name, self.console).__enter__()
        return self.current


def _report(console: Console, results: Demo, out: Path) -> None:
    table = Table("", "sparse", "dense", "sparse ÷ dense", title="One seed each on 450 validation images")
    twin_results = (results.sparse, results.dense)
    table.add_row("accuracy", *(f"{each.top1:.4f}" for each in twin_results), "")
    for title, figure in (
        ("parameters", lambda each: each.cost.parameters),
        ("parameters active per token", lambda each: each.cost.active_parameters),
        ("MACs per image", lambda each: each.cost.macs),
        ("images/s, forward", lambda each: each.images_per_second),
    ):
        values = [figure(each) for each in twin_results]
        table.add_row(title, *(f"{value:,.0f}" for value in values), f"{values[0] / values[1]:.2f}")
    console.print(table)
    console.print(
        f"3-nearest-neighbours on the same split: {results.nearest_neighbours:.4f}. Such small images do not need "
        "experts:\nthe demo shows how training works, not that experts are better.\n"
        "In the repository, benchmarks/digits_twins.py compares the twins over seeds.\n",
        soft_wrap=True,
    )
    for prediction in results.predictions:
        _, *best = prediction.cells().values()
        console.print(f"{prediction.image}: {', '.join(best)}", soft_wrap=True, highlight=False)
    console.print(
        f"\nThe expert of each patch: {out / 'routing.png'}\n\nNext:\n"
        f"  vismoe eval {out} --data digits\n"
        f"  vismoe predict {out} {out / 'samples'}\n"
        "  vismoe train digits --num-experts 32 --out runs/e32\n"
        "  vismoe models",
        soft_wrap=True,
        highlight=False,
    )


def main(arguments: list[str]) -> None:
    tyro.cli(demo, args=arguments, prog="vismoe demo")
