"""What the routers did: tables and pictures."""

from .pictures import plain_text, routing_pictures, save_figure
from .routing import LayerRouting, experts_of_tokens, route

__all__ = ["LayerRouting", "experts_of_tokens", "plain_text", "route", "routing_pictures", "save_figure"]
