"""Networks that share an interface. They know rows and how these lie, not routers or tokens."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .mlp import MLP, kind_of


class StackedLinear(nn.Module):
    """E linear layers in one parameter: weight (E, out, in), bias (E, out) or None. Executed by a `Layout`."""

    def __init__(self, num_experts: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform for each expert apart, biases normal with std 1e-6, as the reference's MLP has it."""
        fan_out, fan_in = self.weight.shape[1:]
        bound = (6 / (fan_in + fan_out)) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=1e-6)


class StackedNorm(nn.Module):
    """The scale and shift of E LayerNorms: weight and bias (E, features)."""

    def __init__(self, num_experts: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_experts, features))
        self.bias = nn.Parameter(torch.zeros(num_experts, features))


def stacked_parts(experts: nn.Module) -> Iterator[nn.Module]:
    """The modules whose own parameters and buffers have a row for each expert: `experts` and the stacked ones in it.
    What else is in it, all experts share."""
    return (part for part in experts.modules() if part is experts or isinstance(part, StackedLinear | StackedNorm))


@runtime_checkable
class Layout(Protocol):
    """How a backend lays out rows: what experts may do to them that differs from expert to expert.

    Written in these two operations, one formula serves rows of one expert (n, d), padded rows of all (E, C, d) and
    rows sorted by expert (R, d).
    """

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        """Each row by its expert's linear layer."""

    def expand(self, parameter: Float[Tensor, "E f"]) -> Tensor:
        """Each row's vector of a per-expert parameter, in a shape that broadcasts against the rows."""


Experts = Callable[[Tensor, Layout], Tensor]
"""Rows, and how they lie -> each row's expert applied to it."""


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, the reference's."""
    return F.gelu(x, approximate="tanh")


class MLPExperts(nn.Module):
    """E MLPs of one shape: down(activation(up(x))), or gated: down(activation(gate(x)) · up(x)) (SwiGLU and kin).

    **Arguments:** `dim`, `hidden_dim`, `num_experts`; `activation`: by default GELU in its tanh form, the reference's;
    `gated`: with a second layer whose activation multiplies; `bias`: of all layers; `norm`: a LayerNorm before `down`,
    as in EVA; `norm_eps`: its epsilon; `dropout`: share of hidden units, and of outputs, dropped while training.

    **Parameters:** up.weight (E, h, d), down.weight (E, d, h), gate.weight like up's; biases (E, h) and (E, d).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        activation: Callable[[Tensor], Tensor] = tanh_gelu,
        gated: bool = False,
        bias: bool = True,
        norm: bool = False,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ):
        super().__init__()
        if min(dim, hidden_dim, num_experts) < 1 or not 0 <= dropout <= 1:
            sizes = f"dim={dim}, hidden_dim={hidden_dim}, num_experts={num_experts}, dropout={dropout}"
            raise ValueError(f"experts need positive sizes and a dropout in 0…1, but {sizes}")
        self.dim, self.hidden_dim, self.num_experts = dim, hidden_dim, num_experts
        self.activation, self.norm_eps, self.dropout = activation, norm_eps, dropout
        self.up = StackedLinear(num_experts, dim, hidden_dim, bias)
        self.gate = StackedLinear(num_experts, dim, hidden_dim, bias) if gated else None
        self.norm = StackedNorm(num_experts, hidden_dim) if norm else None
        self.down = StackedLinear(num_experts, hidden_dim, dim, bias)

    def forward(self, x: Float[Tensor, "*rows d"], layout: Layout) -> Float[Tensor, "*rows d"]:
        """Each row's expert applied to it; which expert that is, `layout` knows."""
        hidden = layout.linear(x, self.up)
        gate = None if self.gate is None else layout.linear(x, self.gate)
        hidden = self.activation(hidden) if gate is None else self.activation(gate) * hidden
        hidden = F.dropout(hidden, self.dropout, self.training)
        if self.norm is not None:
            hidden = F.layer_norm(hidden, (self.hidden_dim,), eps=self.norm_eps)
            hidden = hidden * layout.expand(self.norm.weight) + layout.expand(self.norm.bias)
        return F.dropout(layout.linear(hidden, self.down), self.dropout, self.training)

    def expert(self, number: int) -> MLP:
        """One expert as an MLP of its own: a copy."""
        mlp = MLP.undrawn(self.up.weight, self.dim, self.hidden_dim, **kind_of(self))
        mlp.load_state_dict({name: stacked[number] for name, stacked in self.state_dict().items()})
        return mlp.train(self.training)

    @torch.no_grad()
    def set_expert(self, number: int, mlp: MLP) -> None:
        """Gives one expert the parameters of an MLP of the same kind and sizes."""
        given = mlp.state_dict()
        for name, stacked in self.state_dict().items():
            stacked[number] = given[name]
