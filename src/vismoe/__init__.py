from .moe import MLPExperts, MoE, TopKRouter, condition, record
