"""Experts with stacked parameters. They work on rows and their layout, without routers or tokens."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..resident import resident
from .mlp import MLP, kind_of


class StackedLinear(nn.Module):
    """E linear layers in one parameter: weight (E, out, in), bias (E, out) or None.

    **Arguments:**

    - `num_experts`: number of experts E.
    - `in_features`, `out_features`: widths of inputs and outputs.
    - `bias`: whether there are biases; default True.
    """

    def __init__(self, num_experts: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform for each expert separately; biases normal with std 1e-6, as in the reference's MLP."""
        fan_out, fan_in = self.weight.shape[1:]
        bound = (6 / (fan_in + fan_out)) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=1e-6)

    def forward(self, x: Float[Tensor, "*rows in"], layout: "Layout") -> Float[Tensor, "*rows out"]:
        """Applies to each row the layer of its expert."""
        return layout.linear(x, self)

    def extra_repr(self) -> str:
        num_experts, out_features, in_features = self.weight.shape
        return f"{num_experts}, {in_features}, {out_features}, bias={self.bias is not None}"


class StackedNorm(nn.Module):
    """E LayerNorms: weight and bias (E, features).

    **Arguments:**

    - `num_experts`: number of experts E.
    - `features`: width of the inputs.
    - `eps`: epsilon; default 1e-6.
    """

    def __init__(self, num_experts: int, features: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_experts, features))
        self.bias = nn.Parameter(torch.zeros(num_experts, features))

    def forward(self, x: Float[Tensor, "*rows f"], layout: "Layout") -> Float[Tensor, "*rows f"]:
        """Normalises each row, with its expert's scale and shift."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normed * layout.expand(resident(self.weight, x)) + layout.expand(resident(self.bias, x))

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.weight.shape))}, eps={self.eps}"


def stacked_parts(experts: nn.Module) -> Iterator[nn.Module]:
    """The modules whose own parameters and buffers have one entry per expert: `experts` and the stacked modules in it.
    Everything else in it is shared by all experts."""
    return (part for part in experts.modules() if part is experts or isinstance(part, StackedLinear | StackedNorm))


@runtime_checkable
class Layout(Protocol):
    """How a product arranges rows, and how per-expert parameters are applied to them.

    A module of experts is called with rows and their layout, and passes both to its stacked layers. So one formula
    works for rows of one expert (n, d), padded rows of all experts (E, C, d) and rows sorted by expert (R, d).
    """

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        """Applies to each row the linear layer of its expert. Called by `StackedLinear` only."""

    def expand(self, parameter: Float[Tensor, "E f"]) -> Tensor:
        """The vector of each row's expert, in a shape that broadcasts with the rows."""


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation, as in the reference."""
    return F.gelu(x, approximate="tanh")


class MLPExperts(nn.Module):
    """E MLPs of one shape: down(activation(up(x))), or gated: down(activation(gate(x)) · up(x)), as in SwiGLU.

    **Arguments:**

    - `dim`: width of a token, d.
    - `hidden_dim`: width of the hidden layer, h.
    - `num_experts`: number of experts E.
    - `activation`: activation function; default: GELU with the tanh approximation, as in the reference.
    - `gated`: whether the MLP is gated; default False.
    - `bias`: whether the linear layers have biases; default True.
    - `norm`: whether there is a LayerNorm before `down`, as in EVA; default False.
    - `norm_eps`: epsilon of the LayerNorm; default 1e-6.
    - `dropout`: dropout rate of hidden units and of outputs, 0 to 1; default 0.

    **Parameters:** `up.weight` (E, h, d), `down.weight` (E, d, h), `gate.weight` (E, h, d), biases (E, h) and (E, d).

    **Raises:** ValueError for sizes below 1, and for a dropout outside 0…1.
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
        """Applies to each row its expert, which `layout` determines."""
        hidden = self.up(x, layout)
        gate = None if self.gate is None else self.gate(x, layout)
        hidden = self.activation(hidden) if gate is None else self.activation(gate) * hidden
        hidden = F.dropout(hidden, self.dropout, self.training)
        if self.norm is not None:
            hidden = self.norm(hidden, layout)
        return F.dropout(self.down(hidden, layout), self.dropout, self.training)

    def expert(self, number: int) -> MLP:
        """A copy of one expert as a separate MLP."""
        mlp = MLP.undrawn(self.up.weight, self.dim, self.hidden_dim, **kind_of(self))
        mlp.load_state_dict({name: stacked[number] for name, stacked in self.state_dict().items()})
        return mlp.train(self.training)

    @torch.no_grad()
    def set_expert(self, number: int, mlp: MLP) -> None:
        """Copies the parameters of an MLP of the same kind and sizes into one expert."""
        state = mlp.state_dict()
        for name, stacked in self.state_dict().items():
            stacked[number] = state[name]
