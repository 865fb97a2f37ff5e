"""Training: takes a recipe, writes a run folder."""

from .loop import TrainingStoppedError, fit
from .meter import Status
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
