"""Networks: timm's VisionTransformer with MoE layers, by name or by configuration."""

from .config import MoEConfig
from .cost import Cost, cost
from .densify import densify, reduce_experts
from .ensemble import ensemble_loss, ensemble_metrics, mean_logits, mean_of_images, member_loss
from .model import SparseVisionTransformer
from .modes import evaluating
from .presets import PRESETS, Preset, dense_twin
from .upcycling import make_sparse, upcycle
from .usage import Usage, measure_usage

__all__ = [
    "PRESETS",
    "Cost",
    "MoEConfig",
    "Preset",
    "SparseVisionTransformer",
    "Usage",
    "cost",
    "dense_twin",
    "densify",
    "ensemble_loss",
    "ensemble_metrics",
    "evaluating",
    "make_sparse",
    "mean_logits",
    "mean_of_images",
    "measure_usage",
    "member_loss",
    "reduce_experts",
    "upcycle",
]
