"""What a network costs: counted, not measured; a network on the meta device needs no memory."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vismoe.moe import LocalExchange, MoE, Rows, stacked_parts
from vismoe.moe.execution.layouts import OneExpert

from .modes import evaluating, using_backend


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    - `parameters`: all of them.
    - `active_parameters`: those that one token passes through: k of E experts (on average, where tokens differ in that)
      and everything that experts share.
    - `multiplications`: multiply-adds of matrix products for one image.
    """

    parameters: int
    active_parameters: int
    multiplications: int


def cost(model: nn.Module, image_size: tuple[int, int, int]) -> Cost:
    """Counts a network for one image, at evaluation, with nothing dropped.

    The model runs once with meta tensors in place of its own, since kernels of attention are not counted on a device.
    All rows go to one expert, which costs the same as any other choice.

    **Arguments:**

    - `model`: any network; it is left as it was.
    - `image_size`: (channels, height, width).
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    active = parameters
    for layer in model.modules():
        if isinstance(layer, MoE):
            stacked = sum(
                tensor.numel() for part in stacked_parts(layer.experts) for tensor in part.parameters(recurse=False)
            )
            per_token = min(layer.router.experts_per_token, layer.router.num_experts)
            active -= stacked - int(stacked * per_token / layer.router.num_experts)
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = {name: tensor.detach().to("meta") for name, tensor in named}
    image = torch.zeros(1, *image_size, device="meta", dtype=next(model.parameters()).dtype)
    with (
        evaluating(model),
        using_backend(model, _first_expert_only, LocalExchange()),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        torch.func.functional_call(model, tensors, image)
    return Cost(parameters, active, counter.get_total_flops() // 2)


def _first_expert_only(experts: nn.Module, rows: Rows) -> Tensor:
    """A product that needs no counts, which meta tensors do not have."""
    answers: Tensor = experts(rows.values, OneExpert(0))
    return answers
