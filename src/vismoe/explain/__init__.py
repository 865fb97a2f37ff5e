"""What the experts of a network do: routing of images as tables, traces, and plots."""

from .ablation import WithoutExpert, without_each_expert, without_expert
from .analysis import Information, LayerAnalysis, SetAnalysis, analyse_set, mutual_information
from .capacity import has_capacity, using_capacity
from .rollout import attention_rollout, has_rollout
from .routing import LayerRouting, experts_of_tokens, route
from .routing_figure import routing_images
from .trace import ImageTrace, LayerTrace, data_uri, trace_image

__all__ = [
    "ImageTrace",
    "Information",
    "LayerAnalysis",
    "LayerRouting",
    "LayerTrace",
    "SetAnalysis",
    "WithoutExpert",
    "analyse_set",
    "attention_rollout",
    "data_uri",
    "experts_of_tokens",
    "has_capacity",
    "has_rollout",
    "mutual_information",
    "route",
    "routing_images",
    "trace_image",
    "using_capacity",
    "without_each_expert",
    "without_expert",
]
