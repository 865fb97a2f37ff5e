"""The training loop: trains by a recipe and writes a run folder."""

from .fitting import fit
from .meter import Status
from .steps import TrainingStoppedError

__all__ = ["Status", "TrainingStoppedError", "fit"]
