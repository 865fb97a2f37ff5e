"""Recipe -> run."""

from .loop import fit
from .meter import Status
from .own_parts import file_parts, own_parts
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
    "file_parts",
    "fit",
    "free_path",
    "own_parts",
    "without_nan",
]
