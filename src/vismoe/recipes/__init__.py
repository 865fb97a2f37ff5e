"""Recipes by name, and training by a recipe."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vismoe.training import Recipe, Run, Status, fit, free_path

from .digits import digits, digits_dense
from .fashion_mnist import fashion_mnist, fashion_mnist_cnn, fashion_mnist_dense
from .images import images
from .paper import paper_b16, paper_b32, paper_finetune, paper_h14, paper_l16, paper_l32, paper_s32

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        digits_dense,
        fashion_mnist,
        fashion_mnist_dense,
        fashion_mnist_cnn,
        images,
        paper_s32,
        paper_b32,
        paper_b16,
        paper_l32,
        paper_l16,
        paper_h14,
        paper_finetune,
    )
}

__all__ = [
    "RECIPES",
    "digits",
    "digits_dense",
    "fashion_mnist",
    "fashion_mnist_cnn",
    "fashion_mnist_dense",
    "find_recipe",
    "images",
    "paper_b16",
    "paper_b32",
    "paper_finetune",
    "paper_h14",
    "paper_l16",
    "paper_l32",
    "paper_s32",
    "train",
]


def find_recipe(name: str) -> Recipe:
    """Returns the recipe of a name.

    **Raises:** ValueError for an unknown name.
    """
    if name not in RECIPES:
        similar = get_close_matches(name, RECIPES, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"accepted are {', '.join(RECIPES)}"
        raise ValueError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]()


def train(
    recipe: str | Recipe,
    out: str | Path | None = None,
    on_status: Callable[[Status], None] | None = None,
    resume: bool = False,
    log: Callable[[str], None] | None = None,
    **overrides: Any,
) -> Run:
    """Trains by a recipe.

    **Arguments:**

    - `recipe`: a name (see `vismoe train`) or a `Recipe`.
    - `out`: the run folder; default: the first of `runs/NAME`, `runs/NAME-2`, … that does not exist.
    - `on_status`: called with a `Status` every few steps; default: no call.
    - `resume`: whether to resume the run in `out` (default `runs/NAME`) from its newest checkpoint, if there is one;
      default False.
    - `log`: called with each line of text about the data set, before the first step; default: no call.
    - `overrides`: fields of the recipe to change.

    **Returns:** the finished `Run`.

    **Raises:** FileExistsError if `out` exists; ValueError, FileNotFoundError for a recipe that cannot be used.
    """
    if "watch" in overrides:
        warnings.warn("vismoe.train(watch=…) is called on_status now", DeprecationWarning, stacklevel=2)
        on_status = overrides.pop("watch")
    resolved = find_recipe(recipe) if isinstance(recipe, str) else recipe
    try:
        resolved = replace(resolved, **overrides)
    except TypeError as error:
        raise ValueError(f"a recipe has no field {str(error).rpartition(' ')[2]}") from error
    default_path = Path("runs") / resolved.name
    path = Path(out) if out is not None else default_path if resume else free_path(default_path)
    return fit(resolved, path, on_status, resume, log=log)
