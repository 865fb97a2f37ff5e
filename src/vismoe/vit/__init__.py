"""Networks: timm's VisionTransformer with MoE layers, by name or by configuration."""

from .cost import Cost, cost
from .model import SparseVisionTransformer
from .presets import PRESETS, Preset, dense_twin
from .sparsify import MoEConfig

__all__ = ["PRESETS", "Cost", "MoEConfig", "Preset", "SparseVisionTransformer", "cost", "dense_twin"]
