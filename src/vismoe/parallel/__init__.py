"""Several processes: a mesh with named axes, communication between them, and signals to them. Distributed networks are
in the files `sharding` and `all_to_all`, which import much of PyTorch."""

from .mesh import AXES, Axis, Mesh, free_memory, join_mesh, resolve_device
from .signals import Stop, raising, signal_name

__all__ = ["AXES", "Axis", "Mesh", "Stop", "free_memory", "join_mesh", "raising", "resolve_device", "signal_name"]
