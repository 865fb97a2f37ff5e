"""Gradient clipping of distributed networks."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vismoe.moe.resident import local


@torch.no_grad()
def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` also for networks whose parameters are distributed over several meshes, as
    `vismoe.parallelize` does, for which PyTorch's raises an error. The norm is that of the whole network's gradient, in
    every process.

    **Arguments:**

    - `parameters`: parameters, or a parameter; those without gradient are ignored.
    - `max_norm`: the largest norm that is left as it is.

    **Returns:** the norm before clipping, a scalar tensor.
    """
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not any(isinstance(parameter.grad, DTensor) for parameter in given):
        return nn.utils.clip_grad_norm_(given, max_norm)
    clipped: dict[Any, list[Tensor]] = {}
    for parameter in given:
        if parameter.grad is not None:
            clipped.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    grads = [parameter.grad for some in clipped.values() for parameter in some]
    norm = _norm([grad for grad in grads if grad is not None])
    for some in clipped.values():  # PyTorch's function takes gradients of one mesh at a time
        clip_grads_with_norm_(some, max_norm, norm)
    return norm


def _norm(grads: list[Tensor]) -> Tensor:
    """The norm of all gradients, whose parts are added up in one sum over all processes."""
    by_copies: dict[float, list[Tensor]] = {}
    for grad in grads:
        by_copies.setdefault(_copies(grad), []).append(local(grad).float())
    squares = [get_total_norm(parts).square() / copies for copies, parts in by_copies.items()]
    total = torch.stack([square.to(squares[0].device) for square in squares]).sum()
    dist.all_reduce(total)
    return total.sqrt()


def _copies(grad: Tensor) -> float:
    """In how many processes each part of a gradient is."""
    if not isinstance(grad, DTensor):
        return dist.get_world_size()
    kinds = zip(grad.device_mesh.shape, grad.placements, strict=True)
    return dist.get_world_size() / math.prod(size for size, kind in kinds if not kind.is_replicate())
