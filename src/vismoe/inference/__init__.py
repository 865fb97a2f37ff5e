"""A trained network put to work: predictions and evaluation."""

from .evaluation import Evaluation, by_group, evaluate
from .labels import as_known_to, save_classifier
from .prediction import Prediction, predict

__all__ = [
    "Evaluation",
    "Prediction",
    "as_known_to",
    "by_group",
    "evaluate",
    "predict",
    "save_classifier",
]
