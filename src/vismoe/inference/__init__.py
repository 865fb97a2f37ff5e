"""Prediction and evaluation with a trained network."""

from .evaluation import evaluate
from .predictor import Output, Predictor, open_inputs, predict

__all__ = ["Output", "Predictor", "evaluate", "open_inputs", "predict"]
