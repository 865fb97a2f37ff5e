"""The form of a network that is fastest to run on a CPU: packed weights, fused layers, no training."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Linear, Mlp
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

from vismoe.kernels import PackedLinear, kernels_in_use, native, pack_experts
from vismoe.moe import MoE, grouped
from vismoe.moe.execution.compiled import PackedExperts, activation_number, expert_tensors

from .places import copy_of

LINEAR = (nn.Linear, Linear)  # timm's differs under TorchScript alone
UNTOUCHED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of the linear layers in them, without calling these."""
DTYPES = {
    None: torch.float32,
    "float32": torch.float32,
    torch.float32: torch.float32,
    "bfloat16": torch.bfloat16,
    torch.bfloat16: torch.bfloat16,
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def optimize(model: nn.Module, dtype: str | torch.dtype | None = None, inplace: bool = False) -> nn.Module:
    """The inference form of a network, with the same outputs up to rounding: matrices are packed in the order in which
    compiled kernels read them, and MLPs are fused with their activation.

    The result is in evaluation mode, on the CPU, and cannot be trained, saved, loaded into or converted; it is a form
    in memory. Keep the original for that.

    **Arguments:**

    - `model`: any network in float32 on the CPU, or a bare `vismoe.MoE`.
    - `dtype`: type of weights and products: "float32" or "bfloat16" (also as a torch.dtype); default None: float32. In
      bfloat16 the network still takes and returns float32 where it is called itself (parts of it, and methods such as
      `forward_features`, take and return bfloat16), and routers, sums and activations are computed in float32;
      it needs a processor with AVX512-BF16 or AMX.
    - `inplace`: whether `model` itself becomes the result, layer by layer, so that no second copy of its weights is
      needed; default False: a copy does.

    **Returns:** the network. Where no compiled kernels are in use a warning says so, and it is the network in
    evaluation mode.

    **Raises:** ValueError for another dtype, for bfloat16 on a processor without it, and for a module with hooks,
    parametrizations or adapters (LoRA), with weights on another device or of another type, by its name.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: accepted are float32 and bfloat16")
    rounds = DTYPES[dtype] == torch.bfloat16
    if rounds and native() is not None and not native().has_bfloat16():
        raise ValueError(
            f"dtype={dtype!r}: the compiled kernels in use ({kernels_in_use()}) multiply float32 alone; bfloat16 needs "
            "a processor with AVX512-BF16 or AMX"
        )
    if (reason := reason_against(model)) is not None:
        raise ValueError(reason)
    network = model if inplace else copy_of(model)
    network.eval()
    if native() is None:
        warnings.warn(
            f"optimize changes nothing: compiled kernels in use: {kernels_in_use()}; see docs/performance.md",
            stacklevel=2,
        )
        return network
    network.requires_grad_(False)
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, MoE)]
    called = [name for name, layer in layers if not _pack(layer, DTYPES[dtype])]
    if called:
        warnings.warn(
            f"the experts of {', '.join(called)} are not packed: their class, activation or product has no compiled "
            "kernel; they are called as before",
            stacklevel=2,
        )
    if type(network) in LINEAR:
        network = _Linear.of(network, DTYPES[dtype])
    _replace_linear_layers(network, DTYPES[dtype])
    if rounds:
        _round(network)
        network.register_forward_pre_hook(_inputs_to_bfloat16, with_kwargs=True)
        network.register_forward_hook(_outputs_to_float32)
    return network


def reason_against(model: nn.Module) -> str | None:
    """Why `optimize` refuses a network, with the name of the module; None if it does not."""
    return next(filter(None, (_reason(name, module) for name, module in model.named_modules())), None)


def _reason(name: str, module: nn.Module) -> str | None:
    reason = ""
    if any(isinstance(part, _Linear | _Experts) for part in module.modules()):
        reason = "is optimized already"
    elif any(getattr(module, hooks) for hooks in HOOKS) or "forward" in module.__dict__:
        reason = "has hooks (pruning, offload, …), which packed weights would bypass: remove them first"
    elif parametrize.is_parametrized(module):
        reason = "has parametrizations: torch.nn.utils.parametrize.remove_parametrizations makes them weights"
    elif type(module).__module__.partition(".")[0] == "peft" and hasattr(module, "base_layer"):
        reason = "has an adapter: merge it first (merge_and_unload)"
    for parameter_name, parameter in module.named_parameters(recurse=False):
        if parameter.device.type != "cpu":
            reason = f"has {parameter_name} on {parameter.device}: optimize is for weights on the CPU"
        elif parameter.dtype != torch.float32:
            reason = f"has {parameter_name} in {parameter.dtype}: optimize takes weights in float32"
    return f"{name or 'the model'} ({type(module).__name__}) {reason}" if reason else None


def _pack(layer: MoE, dtype: torch.dtype) -> bool:
    """Packs the experts of a layer in a type; returns whether they can be packed."""
    tensors = expert_tensors(layer.experts) if layer.product is grouped else None
    if tensors is None:
        return False
    layer.experts = _Experts(pack_experts(tensors, dtype))
    return True


def _replace_linear_layers(network: nn.Module, dtype: torch.dtype) -> None:
    # Without the linear layers: a list of them would keep their weights in memory until all are packed.
    for module in [module for module in network.modules() if type(module) not in LINEAR]:
        if isinstance(module, UNTOUCHED):
            continue
        if type(module) is Mlp and type(module.fc1) in LINEAR:
            activation = activation_number(module.act)
            if activation is not None:
                module.fc1, module.act = _Linear.of(module.fc1, dtype, activation), nn.Identity()
        for name, child in module.named_children():
            if type(child) in LINEAR:
                setattr(module, name, _Linear.of(child, dtype))


def _round(network: nn.Module) -> None:
    """Converts to bfloat16 what is not packed; routers stay in float32."""
    exact = {id(part) for module in network.modules() if isinstance(module, MoE) for part in module.router.modules()}
    for module in network.modules():
        if not isinstance(module, _Frozen) and id(module) not in exact:  # rotary embeddings stay exact by themselves
            module._apply(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor, recurse=False)


def _inputs_to_bfloat16(module: nn.Module, inputs: Any, options: Any) -> Any:
    return tree_map(lambda value: _convert(value, torch.bfloat16), (inputs, options))


def _outputs_to_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tree_map(lambda value: _convert(value, torch.float32), outputs)


def _convert(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Frozen(nn.Module):
    """A module whose weights are packed: it refuses, by its class's name, what would change them or read them."""

    def _refuse(self, what: str) -> None:
        raise RuntimeError(
            f"a network that vismoe.optimize made cannot be {what}: its weights are packed; use the original for that, "
            "and optimize it again"
        )

    def train(self, mode: bool = True) -> "_Frozen":
        if mode:
            self._refuse("trained")
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refuse("saved")

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._refuse("loaded into")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Frozen":
        own = next(buffer for buffer in self.buffers())  # what is packed
        probe = fn(own.new_empty(0))
        if (probe.dtype, probe.device) != (own.dtype, own.device):
            self._refuse(f"converted to {probe.dtype} on {probe.device}")
        return self


class _Linear(_Frozen, PackedLinear):
    @staticmethod
    def of(layer: Any, dtype: torch.dtype, activation: int = -1) -> "_Linear":
        return _Linear(layer.weight, layer.bias, activation, dtype).eval()


class _Experts(_Frozen, PackedExperts):
    def register_forward_hook(self, *arguments: Any, **options: Any) -> Any:
        self._refuse("given hooks on its experts, which are never called")

    def register_forward_pre_hook(self, *arguments: Any, **options: Any) -> Any:
        self._refuse("given hooks on its experts, which are never called")
