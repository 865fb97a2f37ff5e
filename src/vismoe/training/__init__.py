"""Recipe -> run."""

from .evaluation import Evaluation, Prediction, data_config, evaluate, label_names, predict, resolve_device
from .loop import TrainingDivergedError, fit
from .meter import Status
from .recipe import Recipe
from .run import Run, free_path
from .stop import TrainingStoppedError

__all__ = [
    "Evaluation",
    "Prediction",
    "Recipe",
    "Run",
    "Status",
    "TrainingDivergedError",
    "TrainingStoppedError",
    "data_config",
    "evaluate",
    "fit",
    "free_path",
    "label_names",
    "predict",
    "resolve_device",
]
