"""A separate MLP with the same structure as an expert."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """One expert as a separate MLP: down(norm(activation(up(x)))), or gated: down(norm(activation(gate(x)) · up(x))).

    **Arguments:**

    - `dim`: width of a token, d.
    - `hidden_dim`: width of the hidden layer, h.
    - `activation`: activation function.
    - `gated`: whether the MLP is gated; default False.
    - `bias`: whether the linear layers have biases; default True.
    - `norm`: whether there is a LayerNorm before `down`; default False.
    - `norm_eps`: epsilon of the LayerNorm; default 1e-6.
    - `dropout`: dropout rate of hidden units and of outputs, 0 to 1; default 0.

    **Parameters:** `up.weight` (h, d), `down.weight` (d, h), `gate.weight` (h, d), biases, `norm.weight` and
    `norm.bias` (h,).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        activation: Callable[[Tensor], Tensor],
        gated: bool = False,
        bias: bool = True,
        norm: bool = False,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dim, self.hidden_dim = dim, hidden_dim
        self.activation, self.norm_eps, self.dropout = activation, norm_eps, dropout
        self.up = nn.Linear(dim, hidden_dim, bias)
        self.gate = nn.Linear(dim, hidden_dim, bias) if gated else None
        self.norm = nn.LayerNorm(hidden_dim, norm_eps) if norm else None
        self.down = nn.Linear(hidden_dim, dim, bias)

    def forward(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        hidden = self.up(x)
        hidden = self.activation(hidden) if self.gate is None else self.activation(self.gate(x)) * hidden
        hidden = F.dropout(hidden, self.dropout, self.training)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return F.dropout(self.down(hidden), self.dropout, self.training)

    @staticmethod
    def undrawn(like: Tensor, dim: int, hidden_dim: int, **kind: Any) -> "MLP":
        """An MLP with uninitialised parameters, with the dtype and device of the tensor `like`. It draws no random
        numbers."""
        with torch.device("meta"):
            mlp = MLP(dim, hidden_dim, **kind)
        return mlp.to(like.dtype).to_empty(device=like.device)

    def empty_like(self, hidden_dim: int | None = None) -> "MLP":
        """An MLP of the same kind with uninitialised parameters; `hidden_dim`: its hidden width, default: the same."""
        return MLP.undrawn(self.up.weight, self.dim, hidden_dim or self.hidden_dim, **kind_of(self))


def kind_of(mlp: Any) -> dict[str, Any]:
    """The arguments, except sizes, with which an `MLP` or `MLPExperts` was built."""
    return {
        "activation": mlp.activation,
        "gated": mlp.gate is not None,
        "bias": mlp.up.bias is not None,
        "norm": mlp.norm is not None,
        "norm_eps": mlp.norm_eps,
        "dropout": mlp.dropout,
    }
