"""The demo: a V-MoE, its dense twin and 3-nearest-neighbours on the same digits."""

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vismoe.data import Data, ImageSet, open_data
from vismoe.inference import evaluate, predict
from vismoe.tasks import Prediction
from vismoe.training import Recipe, Run, Status, fit
from vismoe.vit import Cost, cost
from vismoe.weights import data_config

from .digits import digits, digits_dense

NAME, SAMPLES = "demo", 5


@dataclass(frozen=True)
class Contestant:
    """A trained twin: its run, its cost, and its accuracy and speed on the validation split."""

    run: Run
    cost: Cost
    top1: float
    images_per_second: float


@dataclass(frozen=True)
class Demo:
    """Results of the demo.

    - `sparse`, `dense`: the twins.
    - `nearest_neighbours`: accuracy of 3-nearest-neighbours on raw pixels of the same splits.
    - `predictions`: of the sparse twin, for the validation images in the folder `samples/`.
    """

    sparse: Contestant
    dense: Contestant
    nearest_neighbours: float
    predictions: list[Prediction]


def twins(steps: int | None = None, seed: int = 0) -> tuple[Recipe, Recipe]:
    """The recipes of the sparse and the dense twin.

    **Raises:** ValueError if `steps` or `seed` is out of range.
    """
    changes: dict[str, Any] = {"seed": seed} | ({} if steps is None else {"steps": steps})
    return replace(digits(), name=NAME, **changes), replace(digits_dense(), name=f"{NAME}_dense", **changes)


def clear(out: Path) -> bool:
    """Removes an earlier demo. Returns False if there was none.

    **Raises:** FileExistsError if `out` has anything else: another run, or other files.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if Run.of(out) != Run(out) or Run(out).recipe.name != NAME:
        raise FileExistsError(f"{out} exists and is not a demo: remove it or choose another --out")
    shutil.rmtree(out)
    return True


def run_demo(
    recipes: tuple[Recipe, Recipe], out: Path, on_status: Callable[[Recipe], Callable[[Status], None]]
) -> Demo:
    """Trains both `twins` and compares them. `on_status(recipe)` returns the function called with each status."""
    paths = (out, out / "dense")
    runs = [fit(recipe, path, on_status(recipe)) for recipe, path in zip(recipes, paths, strict=True)]
    data = open_data(runs[0].recipe.data, runs[0].recipe.split_seed)
    models = [run.load_model() for run in runs]
    sparse, dense = _compare(runs, models, data)
    samples = _write_samples(data.val, data.classes, out / "samples")
    return Demo(sparse, dense, nearest_neighbours(data), predict(models[0], samples, topk=3))


def _compare(runs: list[Run], models: list[nn.Module], data: Data) -> list[Contestant]:
    # The models take turns, so that other load on the machine affects both.
    rounds = [[evaluate(model, data.val) for model in models] for _ in range(5)]
    contestants = []
    for number, (run, model) in enumerate(zip(runs, models, strict=True)):
        speed = statistics.median(results[number].images_per_second for results in rounds)
        model_cost = cost(model, data_config(model)["input_size"])
        contestants.append(Contestant(run, model_cost, rounds[0][number].score, speed))
    return contestants


def nearest_neighbours(data: Data, k: int = 3) -> float:
    """Accuracy of k-nearest-neighbours on raw pixels."""
    from sklearn.neighbors import KNeighborsClassifier  # its import takes a second

    assert data.train is not None
    classifier = KNeighborsClassifier(k).fit(_pixels(data.train), data.train.labels.numpy())
    return float(classifier.score(_pixels(data.val), data.val.labels.numpy()))


def _pixels(images: ImageSet) -> np.ndarray:
    return np.stack([np.asarray(images.image(number), dtype=np.float32).ravel() for number in range(len(images))])


def _write_samples(images: ImageSet, classes: list[str], folder: Path) -> list[Path]:
    folder.mkdir()
    files = []
    for number in range(SAMPLES):
        files.append(folder / f"{number}-digit-{classes[images.labels[number]]}.png")
        images.image(number).save(files[-1])
    return files
