"""What the routers did: tables and images."""

from .routing import LayerRouting, experts_of_tokens, route
from .routing_figure import plain_text, routing_images, save_figure

__all__ = ["LayerRouting", "experts_of_tokens", "plain_text", "route", "routing_images", "save_figure"]
