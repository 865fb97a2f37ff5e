"""What the experts of a network do: routing of images as tables, traces, and plots."""

from .analysis import Information, LayerAnalysis, SetAnalysis, analyse_set, mutual_information
from .capacity import has_capacity, using_capacity
from .comparison import Comparison, Difference, Side, compare_networks, optimized_copy
from .parts import (
    BoxExperts,
    Parts,
    WithoutExpert,
    experts_of_boxes,
    parts_of_answer,
    without_each_expert,
    without_expert,
)
from .rollout import attention_rollout, has_rollout
from .routing import LayerRouting, experts_of_tokens, route
from .routing_figure import routing_images
from .trace import ImageTrace, LayerTrace, data_uri, trace_image

__all__ = [
    "BoxExperts",
    "Comparison",
    "Difference",
    "ImageTrace",
    "Information",
    "LayerAnalysis",
    "LayerRouting",
    "LayerTrace",
    "Parts",
    "SetAnalysis",
    "Side",
    "WithoutExpert",
    "analyse_set",
    "attention_rollout",
    "compare_networks",
    "data_uri",
    "experts_of_boxes",
    "experts_of_tokens",
    "has_capacity",
    "has_rollout",
    "mutual_information",
    "optimized_copy",
    "parts_of_answer",
    "route",
    "routing_images",
    "trace_image",
    "using_capacity",
    "without_each_expert",
    "without_expert",
]
