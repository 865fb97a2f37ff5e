"""Networks: timm's VisionTransformer with MoE layers, by name or by configuration; upcycling, and back."""

from .config import MoEConfig
from .conversion.densify import Usage, check_reducible, densify, measure_usage, reduce_experts
from .conversion.optimized import optimize, reason_against
from .conversion.upcycling import make_sparse, upcycle
from .cost import Cost, cost
from .ensemble import ensemble_loss, ensemble_metrics, mean_logits, mean_of_images, member_loss
from .masks import accept_masks
from .model import SparseVisionTransformer
from .modes import evaluating, unfused_attention, using_backend
from .presets import PRESETS, Preset, dense_twin
from .weight_decay import without_weight_decay

__all__ = [
    "PRESETS",
    "Cost",
    "MoEConfig",
    "Preset",
    "SparseVisionTransformer",
    "Usage",
    "accept_masks",
    "check_reducible",
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
    "optimize",
    "reason_against",
    "reduce_experts",
    "unfused_attention",
    "upcycle",
    "using_backend",
    "without_weight_decay",
]
