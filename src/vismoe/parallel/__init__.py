"""Many processes: who is who, and what they tell each other."""

from .world import World, join_world

__all__ = ["World", "join_world"]
