"""Sparse vision transformers (Vision Mixture-of-Experts) for any PyTorch code. What is named here is promised."""

from . import weights
from .moe import MLPExperts, MoE, TopKRouter, condition, record
from .weights import create_model, list_models, load, save

__version__ = "0.1.0"

__all__ = [
    "MLPExperts",
    "MoE",
    "TopKRouter",
    "condition",
    "create_model",
    "list_models",
    "load",
    "record",
    "save",
    "weights",
]
