"""Fine-tuning of classifiers."""

from .adaptation import ClassifierAdaptation

__all__ = ["ClassifierAdaptation"]
