"""Sparse vision transformers (Vision Mixture-of-Experts) for any PyTorch code. What is named here is promised."""

from .moe import MLPExperts, MoE, TopKRouter, condition, record

__all__ = ["MLPExperts", "MoE", "TopKRouter", "condition", "record"]
