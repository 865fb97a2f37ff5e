"""What the experts of a network do: routing of images as tables, traces, and plots."""

from .capacity import has_capacity, using_capacity
from .rollout import attention_rollout, has_rollout
from .routing import LayerRouting, experts_of_tokens, route
from .routing_figure import routing_images
from .trace import ImageTrace, LayerTrace, data_uri, trace_image

__all__ = [
    "ImageTrace",
    "LayerRouting",
    "LayerTrace",
    "attention_rollout",
    "data_uri",
    "experts_of_tokens",
    "has_capacity",
    "has_rollout",
    "route",
    "routing_images",
    "trace_image",
    "using_capacity",
]
