"""Large tensors whose memory is used again, so that the system need not clear it for every training step."""

import torch
from torch import Tensor

from .selection import native

LARGE = 1 << 18
"""Bytes from which memory is kept; an allocator has smaller pieces at hand."""


def uninitialized(*shape: int) -> Tensor:
    """A float32 tensor on the CPU with any contents, as `torch.empty`. A large one takes memory that an earlier one
    left, if there is some of about that size."""
    number = 1
    for size in shape:
        number *= size
    if number * 4 < LARGE:
        return torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever the defaults are
    return torch.frombuffer(native().Memory(number * 4), dtype=torch.float32).view(shape)
