"""Recipe -> run."""

from .evaluation import Evaluation, Prediction, data_config, evaluate, label_names, predict, resolve_device
from .loop import Status, TrainingDivergedError, fit
from .recipe import Recipe
from .run import Run, free_path

__all__ = [
    "Evaluation",
    "Prediction",
    "Recipe",
    "Run",
    "Status",
    "TrainingDivergedError",
    "data_config",
    "evaluate",
    "fit",
    "free_path",
    "label_names",
    "predict",
    "resolve_device",
]
