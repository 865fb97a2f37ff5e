"""Prediction and evaluation with a trained network."""

from .evaluation import evaluate
from .predictor import Output, Predictor, open_inputs, predict
from .speed import Speed, measure_speed

__all__ = ["Output", "Predictor", "Speed", "evaluate", "measure_speed", "open_inputs", "predict"]
