"""vismoe train"""

import shlex
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.files import counted
from vismoe.recipes import RECIPES, find_recipe, train
from vismoe.training import Recipe

from ..shared.notes import warn_of_weakness
from ..shared.progress import TrainingProgress


def main(arguments: list[str]) -> None:
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("", arguments)
    if not name:
        if not {"-h", "--help"} & set(rest):
            raise ValueError(
                f"no recipe given: accepted are {', '.join(RECIPES)}; try: vismoe train digits --steps 200"
            )
        print(
            "usage: vismoe train RECIPE [--field value …] [--out DIR]\n\n"
            "Recipes (vismoe train RECIPE --help lists every option):\n"
        )
        for known, make in RECIPES.items():
            print(f"  {known:20} {(make.__doc__ or '').splitlines()[0]}")
        print("\nExample: vismoe train digits --steps 200 --out runs/try")
        return
    default = find_recipe(name)

    def command(
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = default,
        out: Path | None = None,
        resume: Literal["none", "auto"] = "none",
    ) -> None:
        """Train by a recipe.

        Args:
            recipe: The recipe.
            out: Run folder; default: the first free one of runs/NAME, runs/NAME-2, …
            resume: auto: resume the run folder (default: runs/NAME) from its newest checkpoint, if there is one.
        """
        with TrainingProgress(recipe.name) as progress:
            run = train(recipe, out, progress, resume == "auto", log=progress.log)
        if run.writes:
            name, score = next(iter(run.summary.items()))
            test = run.summary.get("test")
            tested = "" if test is None else f"; test split, {counted(test['images'], 'image')}: {_rounded(test[name])}"
            print(f"validation: {name.replace('_', ' ')} {_rounded(score)}{tested}; everything is in {run.path}")
            images = run.data["training_images"]
            remedy = f"use --steps {run.recipe.enough_steps(images)} or more"
            warn_of_weakness(run.summary["weakness"], run.recipe.shortage(images), remedy)
            path = shlex.quote(str(run.path))
            print(f"next: vismoe eval {path} --data {shlex.quote(recipe.data)}; vismoe serve {path}")

    tyro.cli(
        command, args=rest, prog=f"vismoe train {name}", description=f"{getdoc(RECIPES[name])}\n\n{_example(name)}"
    )


def _rounded(score: float | None) -> str:
    return "undefined" if score is None else f"{score:.4f}"


def _example(name: str) -> str:
    return f"Example: vismoe train {name} --steps 200 --seed 1 --out runs/try"
