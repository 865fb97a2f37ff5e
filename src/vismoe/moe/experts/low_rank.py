"""Low-rank experts: one frozen MLP, and a low-rank difference for each expert."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .mlp import MLP
from .stacked import Layout, StackedLinear
from .structures import read_mlp


class LowRank(nn.Module):
    """E low-rank differences B·A from a linear layer's weight (Hu et al. 2021, *LoRA*): `a.weight` (E, rank, in),
    `b.weight` (E, out, rank). B is initialised to 0, A as in LoRA."""

    def __init__(self, num_experts: int, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.a = StackedLinear(num_experts, in_features, rank, bias=False)
        self.b = StackedLinear(num_experts, rank, out_features, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.a.weight.shape[2] ** -0.5
        nn.init.uniform_(self.a.weight, -bound, bound)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        down: Tensor = self.a(x, layout)
        return self.b(down, layout)

    def of(self, number: int) -> Float[Tensor, "out in"]:
        """The difference of one expert."""
        return self.b.weight[number] @ self.a.weight[number]


class LowRankExperts(nn.Module):
    """E experts that share one frozen MLP. Each adds a low-rank difference to the weights of its linear layers.

    **Arguments:**

    - `mlp`: an `MLP`, or an MLP of a known class (timm's, transformers', or see `vismoe.register_mlp`); it is copied,
      and the copy is frozen.
    - `num_experts`: number of experts E, at least 1.
    - `rank`: rank of each difference, 1 to the smaller of the MLP's two widths; default 16.

    **Parameters:**

    - those of `mlp`, without gradient.
    - `up.a.weight` (E, rank, d), `up.b.weight` (E, h, rank); `gate` likewise, if the MLP is gated.
    - `down.a.weight` (E, rank, h), `down.b.weight` (E, d, rank).

    B is initialised to 0, so every expert starts equal to the MLP.

    **Raises:** ValueError for values out of range, and for an MLP of an unknown class.
    """

    def __init__(self, mlp: nn.Module, num_experts: int, rank: int = 16):
        super().__init__()
        self.mlp = read_mlp(mlp).requires_grad_(False)
        dim, hidden_dim = self.mlp.dim, self.mlp.hidden_dim
        if num_experts < 1:
            raise ValueError(f"num_experts={num_experts}: accepted are at least 1")
        if not 1 <= rank <= min(dim, hidden_dim):
            raise ValueError(f"rank={rank}: accepted are 1 to {min(dim, hidden_dim)}")
        self.dim, self.hidden_dim, self.num_experts, self.rank = dim, hidden_dim, num_experts, rank
        self.up = LowRank(num_experts, dim, hidden_dim, rank)
        self.gate = None if self.mlp.gate is None else LowRank(num_experts, dim, hidden_dim, rank)
        self.down = LowRank(num_experts, hidden_dim, dim, rank)
        self.to(self.mlp.up.weight)

    def forward(self, x: Float[Tensor, "*rows d"], layout: Layout) -> Float[Tensor, "*rows d"]:
        """Applies to each row its expert, which `layout` determines."""
        mlp = self.mlp
        hidden = mlp.up(x) + self.up(x, layout)
        if mlp.gate is None or self.gate is None:
            hidden = mlp.activation(hidden)
        else:
            hidden = mlp.activation(mlp.gate(x) + self.gate(x, layout)) * hidden
        hidden = F.dropout(hidden, mlp.dropout, self.training)
        if mlp.norm is not None:
            hidden = mlp.norm(hidden)
        return F.dropout(mlp.down(hidden) + self.down(hidden, layout), mlp.dropout, self.training)

    @torch.no_grad()
    def expert(self, number: int) -> MLP:
        """A copy of one expert as a separate MLP."""
        merged = read_mlp(self.mlp)
        for name in ("up", "gate", "down"):
            difference = getattr(self, name)
            if difference is not None:
                cast(nn.Linear, getattr(merged, name)).weight += difference.of(number)
        return merged
