"""The product of experts whose matrices are on disk, and the stacked layers without matrices that it multiplies."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vismoe.files.amounts import as_text
from vismoe.moe import Rows, StackedLinear
from vismoe.moe.execution.layouts import OneExpert, product_dtype

from .memory import resident_bytes
from .store import ExpertStore

MARGIN = 32 << 20
"""Bytes of the limit that stay free: for what is allocated between two looks at the memory."""
COPIES = 3
"""How many of the widest activations of a block are in memory at once."""


class LinearOnDisk(StackedLinear):
    """E linear layers whose weight (E, out, in) is on disk. The biases are in memory.

    **Arguments:**

    - `name`: the weight's name in the file.
    - `layer`: the layer that it replaces.
    """

    def __init__(self, name: str, layer: StackedLinear):
        nn.Module.__init__(self)
        self.name, self.shape = name, tuple(layer.weight.shape)
        self.bias = layer.bias

    @property
    def weight(self) -> Any:  # type: ignore[override]
        self._refuse("read here")

    def _refuse(self, what: str) -> None:
        raise RuntimeError(
            f"{self.name} cannot be {what}: it is on disk, in a network that was loaded with max_memory, which can "
            "only predict; load it without max_memory for anything else"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refuse("saved")

    def extra_repr(self) -> str:
        num_experts, out_features, in_features = self.shape
        return f"{num_experts}, {in_features}, {out_features}, bias={self.bias is not None}, on disk"


class _ExpertInMemory(OneExpert):
    """Rows (n, d) of one expert, whose matrices are given by their names."""

    def __init__(self, number: int, matrices: Mapping[str, Tensor], convert: "Converter"):
        super().__init__(number)
        self.matrices, self.convert = matrices, convert

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        if not isinstance(layer, LinearOnDisk):
            return super().linear(x, layer)
        dtype = product_dtype(x)
        bias = None if layer.bias is None else layer.bias[self.number].to(dtype)
        return F.linear(x.to(dtype), self.convert(self.matrices[layer.name], dtype, x.device), bias)


class Converter:
    """Converts matrices to the type and device of a product. On a CPU all use the same memory, so that a conversion
    does not wait for new pages."""

    def __init__(self, elements: int):
        self.elements, self._memory = elements, torch.empty(0)

    def __call__(self, matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return matrix.to(device, dtype)
        if matrix.dtype == dtype:
            return matrix
        if self._memory.dtype != dtype or not len(self._memory):
            self._memory = torch.empty(self.elements, dtype=dtype)
        return self._memory[: matrix.numel()].view(matrix.shape).copy_(matrix)

    def __deepcopy__(self, memo: object) -> "Converter":
        return self


class ProductOnDisk:
    """A product (see `vismoe.moe.Product`) that reads the experts which have rows, one after the other.

    **Arguments:**

    - `store`: the experts of all layers.
    - `layer`: number of this layer in it.
    - `experts_per_token`: number of rows of a token.
    - `widest`: number of features of the network's widest activation.
    - `limit`: the most memory that the process may have, in bytes.
    - `convert`: converts matrices; shared by all layers, which are used in turn.
    """

    def __init__(
        self,
        store: ExpertStore,
        layer: int,
        experts_per_token: float,
        widest: int,
        limit: int,
        convert: Converter,
    ):
        self.store, self.layer, self.convert = store, layer, convert
        self.experts_per_token, self.widest, self.limit = experts_per_token, widest, limit

    def __call__(self, experts: nn.Module, rows: Rows) -> Tensor:
        if torch.is_grad_enabled() and rows.values.requires_grad:
            raise RuntimeError(
                "a network that was loaded with max_memory has no gradients, because its experts do not stay in "
                "memory: call it under torch.inference_mode(), or load it without max_memory"
            )
        counts: list[int] = rows.count.tolist()
        named = [number for number, count in enumerate(counts) if count]
        *parts, dead = rows.values.split([*counts, len(rows.values) - sum(counts)])
        answers = [rows.values.new_zeros(0, rows.values.shape[1])] * len(counts)
        with closing(self.store.experts(self.layer, named, self._room(len(rows.values)))) as read:
            for number, matrices in read:
                answers[number] = experts(parts[number], _ExpertInMemory(number, matrices, self.convert))
        dtype = answers[named[0]].dtype if named else rows.values.dtype
        return torch.cat([*(answer.to(dtype) for answer in answers), torch.zeros_like(dead, dtype=dtype)])

    def _room(self, num_rows: int) -> int:
        """How much memory experts may take, so that what this batch needs until the next layer fits too.

        **Raises:** ValueError if not even one fits.
        """
        others = resident_bytes() - self.store.resident_bytes
        batch = COPIES * int(num_rows / max(1.0, self.experts_per_token)) * self.widest * 4 + self.convert.elements * 4
        room = self.limit - MARGIN - others - batch
        if room < self.store.piece:
            raise ValueError(
                f"max_memory={as_text(self.limit)}: the process has {as_text(others)} without experts, this batch "
                f"needs about {as_text(batch)} more, an expert {as_text(self.store.piece)}, and a margin of "
                f"{as_text(MARGIN)} stays free: give at least {as_text(self.limit - room + self.store.piece)}, or use "
                "smaller batches"
            )
        return room
