"""Many processes: who is who, and what they tell each other."""

from .mesh import World, join_world, resolve_device

__all__ = ["World", "join_world", "resolve_device"]
