"""Recipe -> run."""

from .loop import fit
from .meter import Status
from .recipe import Recipe
from .run import Run, describe, free_path, without_nan
from .step import TrainingDivergedError
from .stop import TrainingStoppedError

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
