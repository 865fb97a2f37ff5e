"""A linear layer, and the activation behind it, with the weight in panels."""

import torch
from torch import Tensor, nn

from .mlp import address, check_no_gradient, check_packed, packed
from .selection import native


class PackedLinear(nn.Module):
    """activation(x · weightᵀ + bias) without gradient, on the CPU.

    **Arguments:** `weight`: (out, in), float32; `bias`: (out,), float32, or None; `activation`: a number of
    `ACTIVATIONS`, -1 for none; `dtype`: type of x, of the packed weight and of the result, torch.float32 (default) or
    torch.bfloat16.

    **Raises:** RuntimeError where the kernels in use cannot multiply this type or did not pack the weight, and for an x
    that wants a gradient; ValueError for an x of another width or on another device.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: int = -1, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.panels: Tensor
        self.bias: Tensor | None
        self.register_buffer("panels", packed(weight.detach()[None].contiguous(), dtype), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_no_gradient(x)
        check_packed(self.panels)
        if x.shape[-1] != self.in_features or x.device.type != "cpu":
            raise ValueError(f"x of shape {tuple(x.shape)} on {x.device}: expected (…, {self.in_features}) on the CPU")
        x = x.to(self.panels.dtype).contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        rows = x.numel() // self.in_features
        sizes = rows, self.in_features, self.out_features
        pointers = x.data_ptr(), self.panels.data_ptr(), address(self.bias)
        call = native().linear_bfloat16 if x.dtype == torch.bfloat16 else native().linear
        call(torch.get_num_threads(), *sizes, *pointers, self.activation, y.data_ptr())
        return y

    @property
    def weight(self) -> Tensor:
        """(out, in), unpacked anew at each access, for modules that read the weight instead of calling the layer."""
        if self.panels.dtype == torch.float32:
            columns = self.panels[0].transpose(1, 2)
        else:
            columns = self.panels[0].permute(0, 2, 1, 3)
        return columns.flatten(2).flatten(0, 1)[: self.out_features, : self.in_features]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, activation={self.activation}"
