"""Many processes: a mesh with named axes, and what processes tell each other."""

from .mesh import AXES, Axis, Mesh, join_mesh, resolve_device

__all__ = ["AXES", "Axis", "Mesh", "join_mesh", "resolve_device"]
