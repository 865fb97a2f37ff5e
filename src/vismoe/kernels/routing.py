"""A whole layer of token choice in one call: router, experts and the sum of their answers, without gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .mlp import ExpertTensors, address, check_packed
from .selection import native


@dataclass(frozen=True)
class RouterTensors:
    """What the kernels take of a router.

    - `weight`: (E, d), float32, contiguous; `bias`: (E,), added to the logits for the choice alone; None: none.
    - `k`: experts per token.
    - `gates`: "softmax" or "sigmoid"; `combine`: "gate", "renormalized" or "unit".
    """

    weight: Tensor
    bias: Tensor | None
    k: int
    gates: str
    combine: str


GATES = {"softmax": 0, "sigmoid": 1}
COMBINE = {"gate": 0, "renormalized": 1, "unit": 2}


def apply_layer(router: RouterTensors, experts: ExpertTensors, tokens: Tensor) -> Tensor:
    """(N, d) -> (N, d): every token's weighted sum of its experts' answers; `tokens` is contiguous and of the experts'
    type."""
    if experts.packed:
        check_packed(experts.up)
    y = torch.empty_like(tokens)
    call = native().layer_bfloat16 if experts.dtype == torch.bfloat16 else native().layer
    call(
        torch.get_num_threads(),
        *experts.arguments,
        tokens.data_ptr(),
        len(tokens),
        router.weight.data_ptr(),
        address(router.bias),
        router.k,
        GATES[router.gates],
        COMBINE[router.combine],
        y.data_ptr(),
    )
    return y
