"""Training: takes a recipe, writes a run folder."""

from .loop import Status, TrainingStoppedError, fit
from .recipe import Recipe
from .run import Run, describe, free_path, without_nan
from .step import TrainingDivergedError

__all__ = [
    "Recipe",
    "Run",
    "Status",
    "TrainingDivergedError",
    "TrainingStoppedError",
    "describe",
    "fit",
    "free_path",
    "without_nan",
]
