"""Networks that share an interface. They know rows and how these lie, not routers or tokens."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .mlp import MLP, kind_of


class StackedLinear(nn.Module):
    """E linear layers in one parameter: weight (E, out, in), bias (E, out) or None."""

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

    def forward(self, x: Float[Tensor, "*rows in"], layout: "Layout") -> Float[Tensor, "*rows out"]:
        """Each row by its expert's layer."""
        return layout.linear(x, self)

    def extra_repr(self) -> str:
        num_experts, out_features, in_features = self.weight.shape
        return f"{num_experts}, {in_features}, {out_features}, bias={self.bias is not None}"


class StackedNorm(nn.Module):
    """E LayerNorms: weight and bias (E, features)."""

    def __init__(self, num_experts: int, features: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_experts, features))
        self.bias = nn.Parameter(torch.zeros(num_experts, features))

    def forward(self, x: Float[Tensor, "*rows f"], layout: "Layout") -> Float[Tensor, "*rows f"]:
        """Each row normalised, with its expert's scale and shift."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normed * layout.expand(self.weight) + layout.expand(self.bias)

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.weight.shape))}, eps={self.eps}"


def stacked_parts(experts: nn.Module) -> Iterator[nn.Module]:
    """The modules whose own parameters and buffers have a row for each expert: `experts` and the stacked ones in it.
    What else is in it, all experts share."""
    return (part for part in experts.modules() if part is experts or isinstance(part, StackedLinear | StackedNorm))


@runtime_checkable
class Layout(Protocol):
    """How a product lays out rows: the arithmetic that differs from expert to expert.

    A module of experts is called with rows and their layout, and hands both on to its stacked layers, which it calls
    as modules. Written so, one formula serves rows of one expert (n, d), padded rows of all (E, C, d) and rows sorted
    by expert (R, d).
    """

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        """Each row by its expert's linear layer: called by the layer, for nobody else to call."""

    def expand(self, parameter: Float[Tensor, "E f"]) -> Tensor:
        """Each row's vector of a per-expert parameter, in a shape that broadcasts against the rows."""


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
        self.norm = StackedNorm(num_experts, hidden_dim, norm_eps) if norm else None
        self.down = StackedLinear(num_experts, hidden_dim, dim, bias)

    def forward(self, x: Float[Tensor, "*rows d"], layout: Layout) -> Float[Tensor, "*rows d"]:
        """Each row's expert applied to it; which expert that is, `layout` knows."""
        hidden = self.up(x, layout)
        gate = None if self.gate is None else self.gate(x, layout)
        hidden = self.activation(hidden) if gate is None else self.activation(gate) * hidden
        hidden = F.dropout(hidden, self.dropout, self.training)
        if self.norm is not None:
            hidden = self.norm(hidden, layout)
        return F.dropout(self.down(hidden, layout), self.dropout, self.training)

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
