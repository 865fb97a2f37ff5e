"""Several processes: a mesh with named axes, and communication. Distributed networks are in the files `sharding` and
`all_to_all`, which import much of PyTorch."""

from .mesh import AXES, Axis, Mesh, free_memory, join_mesh, resolve_device

__all__ = ["AXES", "Axis", "Mesh", "free_memory", "join_mesh", "resolve_device"]
