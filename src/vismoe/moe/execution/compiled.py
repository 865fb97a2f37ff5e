"""Where the compiled kernels may stand for modules that are called: plain experts, and plain token choice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.kernels import (
    ACTIVATIONS,
    TENSORS,
    Exchanged,
    ExpertTensors,
    RouterTensors,
    apply_experts,
    apply_layer,
    native,
)

from ..experts.stacked import MLPExperts, StackedLinear, StackedNorm, tanh_gelu
from ..plan import Plan, SoftPlan
from ..resident import local
from ..routers.sigmoid import SigmoidRouter
from ..routers.top_k import TopKRouter
from .exchange import Rows, inside_transform
from .layouts import SortedRows

Called = Callable[[Tensor, Tensor], Tensor]
GATES: dict[type[nn.Module], str] = {TopKRouter: "softmax", SigmoidRouter: "sigmoid"}


class PackedExperts(nn.Module):
    """Experts in the form in which products read them, without gradient; see `vismoe.optimize`.

    **Arguments:** `experts`: what `vismoe.kernels.pack_experts` returned.
    """

    def __init__(self, experts: ExpertTensors):
        super().__init__()
        self.tensors = experts
        for name, tensor in zip(TENSORS, experts.tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.dim, self.hidden_dim, self.num_experts = experts.dim, experts.hidden_dim, experts.num_experts

    def forward(self, *inputs: Any) -> Tensor:
        raise RuntimeError(
            "experts that vismoe.optimize packed are multiplied by compiled kernels alone: in "
            f"{self.tensors.dtype}, and not under autocast, torch.compile, torch.func or a counter of operations; use "
            "the original network there"
        )


def compiled_answers(experts: nn.Module, rows: Rows) -> Tensor | None:
    """The answers of a product by compiled kernels; None where these may not stand for a call of the experts."""
    values = rows.values
    if not _takes(values) or (tensors := expert_tensors(experts)) is None or tensors.dtype != values.dtype:
        return None

    def called(values: Tensor) -> Tensor:
        answers: Tensor = experts(values, SortedRows(replace(rows, values=values)))
        return answers

    return apply_experts(tensors, values.contiguous(), rows.count.contiguous(), called)


def compiled_sums(experts: nn.Module, plan: Plan, tokens: Tensor, called: Called) -> Tensor | None:
    """Each token's weighted sum of its experts' answers, (N, d), by compiled kernels: dispatch, product and combine in
    one. None where these may not stand for a call of the experts, or tokens have different numbers of rows.

    **Arguments:** `called`: the same by calls, (tokens, weights of rows) -> sums.
    """
    if isinstance(plan, SoftPlan) or plan.inverse is None or plan.weight.dtype != torch.float32:
        return None
    if not _takes(tokens) or (tensors := expert_tensors(experts)) is None or tensors.dtype != tokens.dtype:
        return None
    exchanged = Exchanged(plan.token.contiguous(), plan.inverse.contiguous(), plan.weight.contiguous())
    return apply_experts(tensors, tokens.contiguous(), plan.count.contiguous(), called, exchanged)


def compiled_layer(router: nn.Module, experts: nn.Module, tokens: Tensor) -> Tensor | None:
    """A layer's outcome for tokens (N, d) by one call of the kernels; None where they may not stand for calls of router
    and experts, or a gradient may be wanted."""
    if not _takes(tokens) or torch.is_grad_enabled():
        return None
    routed, tensors = router_tensors(router), expert_tensors(experts)
    if routed is None or tensors is None or tensors.dtype != tokens.dtype or not len(tokens):
        return None
    return apply_layer(routed, tensors, tokens.contiguous())


def _takes(x: Tensor) -> bool:
    """Whether kernels are in use and an input is one for them: on a CPU, of a type that they multiply, not traced or
    transformed, and without hooks on all modules."""
    return (
        native() is not None
        and not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()  # counters of FLOPs, fake tensors: they see operators
        and not inside_transform()
        and torch.autograd.forward_ad._current_level < 0
        and not nn.modules.module._has_any_global_hook()
    )


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what its class says and nothing else."""
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _is_resident(parameter: Tensor | None) -> bool:
    return parameter is None or (
        type(parameter) in (nn.Parameter, Tensor)
        and parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
        and parameter.is_contiguous()
    )


def activation_number(activation: Any) -> int | None:
    """The kernels' number of an activation; None for one they do not know."""
    if isinstance(activation, nn.Module):
        kind = type(activation)
        name = {nn.ReLU: "relu", nn.SiLU: "silu"}.get(kind)
        if kind is nn.GELU:
            name = "gelu" if activation.approximate == "none" else "gelu_tanh"
    else:
        name = {tanh_gelu: "gelu_tanh", F.gelu: "gelu", F.relu: "relu", F.silu: "silu"}.get(activation)
    return None if name is None else ACTIVATIONS[name]


def expert_tensors(experts: nn.Module) -> ExpertTensors | None:
    """What the kernels take of experts; None where these are not plain: of another class, with hooks,
    parametrizations or adapters, offloaded, of another type or on another device."""
    if isinstance(experts, PackedExperts):
        return experts.tensors
    if not _is_plain(experts, MLPExperts):
        return None
    module: Any = experts
    activation = activation_number(module.activation)
    if activation is None or (module.dropout and module.training):
        return None
    up, gate, norm, down = module.up, module.gate, module.norm, module.down
    if not (
        _is_plain(up, StackedLinear)
        and _is_plain(down, StackedLinear)
        and (gate is None or _is_plain(gate, StackedLinear))
        and (norm is None or _is_plain(norm, StackedNorm))
    ):
        return None
    tensors = (
        up.weight,
        up.bias,
        None if gate is None else gate.weight,
        None if gate is None else gate.bias,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        down.weight,
        down.bias,
    )
    tensors = (*map(local, tensors),)
    if not all(map(_is_resident, tensors)):
        return None
    return ExpertTensors(
        len(tensors[0]), module.dim, module.hidden_dim, *tensors, 0.0 if norm is None else norm.eps, activation
    )


def router_tensors(router: nn.Module) -> RouterTensors | None:
    """What the kernels take of a router of token choice that drops nothing; None for another router, or while it
    trains."""
    gates = GATES.get(type(router))
    if gates is None or router.training or not _is_plain(router, type(router)):
        return None
    module: Any = router
    if module.eval_capacity_factor != "none" or not (_is_resident(module.weight) and _is_resident(module.balance_bias)):
        return None
    return RouterTensors(module.weight, module.balance_bias, module.k, gates, module.combine)
