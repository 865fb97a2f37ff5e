"""Routing of images: tables and plots."""

from .routing import LayerRouting, experts_of_tokens, route
from .routing_figure import routing_images

__all__ = ["LayerRouting", "experts_of_tokens", "route", "routing_images"]
