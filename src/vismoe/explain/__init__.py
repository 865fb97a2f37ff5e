"""What the routers did: tables and pictures."""

from .pictures import routing_pictures
from .routing import LayerRouting, experts_of_tokens, route

__all__ = ["LayerRouting", "experts_of_tokens", "route", "routing_pictures"]
