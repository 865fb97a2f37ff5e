"""Prediction and evaluation with a trained network."""

from .evaluation import evaluate
from .inputs import open_inputs
from .predictor import Output, Predictor, predict

__all__ = ["Output", "Predictor", "evaluate", "open_inputs", "predict"]
