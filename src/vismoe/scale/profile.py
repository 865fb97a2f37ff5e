"""One forward pass in training on the meta device: the rows that sparse layers exchange, and the memory of activations.
No values are computed, and nothing is allocated."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vismoe.moe import LocalExchange, MoE, Plan, Rows, record
from vismoe.moe.execution.layouts import OneExpert
from vismoe.moe.plan import SoftPlan
from vismoe.parallel.all_to_all import AllToAllExchange, ReceivedRows
from vismoe.parallel.sharding import blocks_of
from vismoe.vit.modes import evaluating


@dataclass(frozen=True)
class LayerRows:
    """What a sparse layer exchanges in a forward pass.

    - `experts`: number of experts E.
    - `live`: number of rows if the load is even: all that have an expert which accepts them.
    - `slots`: number of rows of the static exchange, in which each expert has a buffer.
    - `bytes_there`, `bytes_back`: bytes of a row on the way to its expert, and of its answer.
    """

    experts: int
    live: int
    slots: int
    bytes_there: int
    bytes_back: int


@dataclass(frozen=True)
class Profile:
    """A forward pass of one process's share of a batch.

    - `layers`: by name, what each sparse layer exchanges, call by call.
    - `saved`: bytes of all that is kept for backward, without parameters.
    - `recomputed`: the same if blocks are recomputed in backward: the blocks' inputs, and what one block keeps.
    """

    layers: dict[str, list[LayerRows]]
    saved: int
    recomputed: int


def profile(model: nn.Module, batch: int, image: tuple[int, ...], static: bool, dtype: torch.dtype | None) -> Profile:
    """Runs a network once on the meta device, in training mode.

    **Arguments:**

    - `model`: the network, not distributed; on any device. It is not changed.
    - `batch`: number of images.
    - `image`: (channels, height, width).
    - `static`: whether the exchange is static.
    - `dtype`: type of parameters and images; None: the parameters' own.
    """
    tensors = {name: _on_meta(parameter, dtype) for name, parameter in model.named_parameters()}
    weights = {_storage(tensor) for tensor in tensors.values()}
    tensors |= {name: buffer.detach().to("meta") for name, buffer in model.named_buffers()}
    own = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    images = torch.empty(batch, *image, device="meta", dtype=dtype or own)
    layers: dict[str, list[LayerRows]] = {}
    saved = _Saved(weights)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))  # gives each module its mode back
        model.train()
        stack.enter_context(_watched(model, static, layers))
        stack.enter_context(record(model))  # auxiliary losses are wanted
        stack.enter_context(saved.counting(list(blocks_of(model))))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_FusedAttention())
        torch.func.functional_call(model, tensors, images)
    return Profile(layers, saved.total(), saved.recomputed())


def _on_meta(parameter: nn.Parameter, dtype: torch.dtype | None) -> Tensor:
    moved = parameter.detach().to("meta", dtype if parameter.is_floating_point() else None)
    return moved.detach().requires_grad_(parameter.requires_grad)


def _storage(tensor: Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number


@dataclass(frozen=True)
class _WatchedExchange(AllToAllExchange):
    """The exchange with other processes that have equally many rows for each expert: what is sent is what arrives, and
    one process stands for all. It notes the rows."""

    calls: list[LayerRows] = field(default_factory=list)

    def dispatch(self, plan: Plan, tokens: Tensor) -> Rows:
        local = LocalExchange(self.bfloat16)
        rows = super().dispatch(plan, tokens) if self.static else local.dispatch(plan, tokens)
        own = rows.own if isinstance(rows, ReceivedRows) else rows
        slots = len(own.count) * own.bound
        live = slots if isinstance(plan, SoftPlan) else len(plan.token)
        self.calls.append(LayerRows(len(own.count), min(live, slots), slots, self._bytes(own.values), 0))
        return rows

    def combine(self, plan: Plan, rows: Rows, answers: Tensor) -> Tensor:
        given = self.calls.pop()
        self.calls.append(LayerRows(given.experts, given.live, given.slots, given.bytes_there, self._bytes(answers)))
        if isinstance(rows, ReceivedRows):
            return super().combine(plan, rows, answers)
        return LocalExchange(self.bfloat16).combine(plan, rows, answers)

    def _bytes(self, rows: Tensor) -> int:
        """Bytes of a row when it is sent."""
        return rows.shape[1] * (torch.bfloat16 if self.bfloat16 else rows.dtype).itemsize

    def _send(self, rows: Tensor, sent: Any = None, received: Any = None) -> Tensor:
        return self.round(rows)


def _one_expert(experts: nn.Module, rows: Rows) -> Tensor:
    """A product for the meta device, where counts have no values. It keeps the activations that any product keeps."""
    answers: Tensor = experts(rows.values, OneExpert(0))
    return answers


@contextmanager
def _watched(model: nn.Module, static: bool, seen: dict[str, list[LayerRows]]) -> Iterator[None]:
    """Context in which the rows of each sparse layer are noted in `seen`."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MoE)}
    own = {name: (layer.exchange, layer.product) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            watched = _WatchedExchange(layer.exchange.bfloat16, processes=1, static=static)
            layer.exchange, layer.product, seen[name] = watched, _one_expert, watched.calls
        yield
    finally:
        for name, layer in layers.items():
            layer.exchange, layer.product = own[name]


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps no matrix of all pairs of tokens for backward, as kernels of accelerators do. (On the meta
    device, PyTorch's function computes it step by step.)"""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        given = options or {}
        if function is not F.scaled_dot_product_attention or given.get("enable_gqa"):
            return function(*arguments, **given)
        return _fused(*arguments, **given)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    answers: Tensor = attention(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return answers


class _Saved:
    """The tensors that autograd keeps for backward, each storage once, by the block that keeps them.

    **Arguments:**

    - `weights`: storages that do not count.
    """

    def __init__(self, weights: set[int]):
        self.weights = weights
        self.block: int | None = None
        self.inputs: dict[int, int] = {}
        self.bytes: dict[int | None, int] = {}
        self.storages: dict[int, Any] = {}

    def total(self) -> int:
        return sum(self.bytes.values())

    def recomputed(self) -> int:
        """Bytes if only the blocks' inputs are kept, and one block at a time is recomputed."""
        inside = {block: number for block, number in self.bytes.items() if block is not None}
        outside = self.bytes.get(None, 0)
        return outside + sum(self.inputs.values()) + max(inside.values(), default=0)

    @contextmanager
    def counting(self, blocks: list[nn.Module]) -> Iterator[None]:
        """Context in which everything that is saved counts."""
        hooks = []
        for number, block in enumerate(blocks):
            hooks.append(block.register_forward_pre_hook(self._entering(number)))
            hooks.append(block.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.block = number
            self.inputs[number] = sum(given.nbytes for given in inputs if isinstance(given, Tensor))

        return enter

    def _leave(self, *_: Any) -> None:
        self.block = None

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self.weights and storage not in self.storages:
            self.storages[storage] = tensor.untyped_storage()  # held, so that no other one gets its number
            self.bytes[self.block] = self.bytes.get(self.block, 0) + tensor.untyped_storage().nbytes()
        return tensor
