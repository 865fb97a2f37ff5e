"""Counts parameters and MACs of a network. Works on the meta device too, without memory."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vismoe.files.renamed import renamed_property
from vismoe.moe import LocalExchange, MoE, Rows, stacked_parts
from vismoe.moe.execution.layouts import OneExpert

from .modes import evaluating, using_backend


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs of a network.

    - `parameters`: number of parameters.
    - `active_parameters`: number of parameters that one token uses: k of E experts (the mean, if tokens have different
      numbers of experts), and everything that is not an expert.
    - `macs`: MACs (multiply-accumulate operations of matrix products) for one image.
    """

    parameters: int
    active_parameters: int
    macs: int

    multiplications = renamed_property("multiplications", "macs")


def cost(model: nn.Module, image_size: tuple[int, int, int]) -> Cost:
    """Counts parameters and MACs of a network for one image, in evaluation mode and without dropped tokens.

    The model runs once on meta tensors, because PyTorch's counter does not see attention kernels on a device. All rows
    go to one expert, which costs as much as any other routing.

    **Arguments:**

    - `model`: any network; it is not changed.
    - `image_size`: (channels, height, width).

    **Returns:** a `Cost`.
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
    """A product that does not read the counts: meta tensors have no values."""
    answers: Tensor = experts(rows.values, OneExpert(0))
    return answers
