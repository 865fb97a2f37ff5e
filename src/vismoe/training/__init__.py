"""Recipe -> run."""

from .device import resolve_device
from .evaluation import Evaluation, Group, by_group, data_config, evaluate
from .labels import as_known_to, is_multi_label, label_names, save_classifier
from .loop import fit
from .meter import Status
from .own_parts import file_parts, own_parts
from .prediction import Prediction, predict
from .recipe import Recipe
from .run import Run, describe, free_path, without_nan
from .step import TrainingDivergedError
from .stop import TrainingStoppedError

__all__ = [
    "Evaluation",
    "Group",
    "Prediction",
    "Recipe",
    "Run",
    "Status",
    "TrainingDivergedError",
    "TrainingStoppedError",
    "as_known_to",
    "by_group",
    "data_config",
    "describe",
    "evaluate",
    "file_parts",
    "fit",
    "free_path",
    "is_multi_label",
    "label_names",
    "own_parts",
    "predict",
    "resolve_device",
    "save_classifier",
    "without_nan",
]
