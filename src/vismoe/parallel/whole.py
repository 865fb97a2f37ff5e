"""Whole tensors of distributed ones, and back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # under no public name


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of a distributed one; any other tensor itself. All processes call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    with _without_advice():
        gathered: Tensor = tensor.full_tensor()
    return gathered


@torch.no_grad()
def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor distributed as another one of the same shape; itself, if that is not distributed. Nothing is sent:
    every process has the whole tensor.

    **Raises:** ValueError for another shape.
    """
    if tensor.shape != like.shape:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} where {tuple(like.shape)} is expected")
    if not isinstance(like, DTensor):
        return tensor
    shape, start = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    part = tensor[tuple(slice(begin, begin + size) for begin, size in zip(start, shape, strict=True))]
    return DTensor.from_local(
        part.to(like.device).contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Context without PyTorch's advice about the order of gathering: each tensor is gathered once in a while."""
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
