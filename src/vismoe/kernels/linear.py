"""A linear layer, and the activation behind it, with the weight in panels."""

import torch
from torch import Tensor, nn

from .mlp import address, packed
from .selection import native


class PackedLinear(nn.Module):
    """activation(x · weightᵀ + bias) without gradient, on the CPU, in float32.

    **Arguments:** `weight`: (out, in); `bias`: (out,) or None; `activation`: a number of `ACTIVATIONS`, -1 for none.

    **Raises:** RuntimeError where no kernels are in use.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: int = -1):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.panels: Tensor
        self.bias: Tensor | None
        self.register_buffer("panels", packed(weight.detach()[None].contiguous()), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        rows = x.numel() // self.in_features
        sizes = rows, self.in_features, self.out_features
        pointers = x.data_ptr(), self.panels.data_ptr(), address(self.bias)
        native().linear(torch.get_num_threads(), *sizes, *pointers, self.activation, y.data_ptr())
        return y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, activation={self.activation}"
