"""Training with several processes: a mesh with named axes, and communication between its processes."""

from .mesh import AXES, Axis, Mesh, free_memory, join_mesh, resolve_device

__all__ = ["AXES", "Axis", "Mesh", "free_memory", "join_mesh", "resolve_device"]
