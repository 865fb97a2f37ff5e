"""Training with several processes: a mesh with named axes, distributed networks, and communication between processes."""

from .all_to_all import AllToAllExchange
from .clipping import clip_grad_norm_
from .mesh import AXES, Axis, Mesh, free_memory, join_mesh, resolve_device
from .sharding import parallelize

__all__ = [
    "AXES",
    "AllToAllExchange",
    "Axis",
    "Mesh",
    "clip_grad_norm_",
    "free_memory",
    "join_mesh",
    "parallelize",
    "resolve_device",
]
