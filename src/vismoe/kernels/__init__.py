"""Compiled kernels for CPUs: C++ that is built when vismoe is installed, and the tensors it takes. Without them
everything works, more slowly."""

from .linear import PackedLinear
from .mlp import ACTIVATIONS, TENSORS, Exchanged, ExpertTensors, apply_experts, pack_experts
from .routing import RouterTensors, apply_layer
from .selection import kernels_in_use, native, using_kernels

__all__ = [
    "ACTIVATIONS",
    "TENSORS",
    "Exchanged",
    "ExpertTensors",
    "PackedLinear",
    "RouterTensors",
    "apply_experts",
    "apply_layer",
    "kernels_in_use",
    "native",
    "pack_experts",
    "using_kernels",
]
