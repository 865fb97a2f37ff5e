"""The one place where a plan is carried out: dispatch, the experts' products, combine.

A backend is a callable (plan, tokens (N, d), experts) -> tokens (N, d): here `loop`, slow and obvious, the oracle,
`grouped`, which computes live rows only, and `padded`, whose shapes are static. Others may fuse or send rows away.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .dispatch import combine, dispatch
from .experts import StackedLinear
from .grouped_linear import grouped_linear
from .plan import SparsePlan

Backend = Callable[[SparsePlan, Tensor, nn.Module], Tensor]
TILE = 64
"""Rows of a tile: enough for a product to be worth its weights' transfer, few enough to pad little."""


def execute(
    plan: SparsePlan, tokens: Float[Tensor, "N d"], experts: nn.Module, backend: Backend | None = None
) -> Float[Tensor, "N d"]:
    """Each token becomes the weighted sum of its experts' outputs, 0 if it has none; by default, `grouped`."""
    return (backend or grouped)(plan, tokens, experts)


def loop(plan: SparsePlan, tokens: Tensor, experts: nn.Module) -> Tensor:
    """One expert after the other, each by plain indexing. The oracle: no speed, no static shapes."""
    combined = torch.zeros_like(tokens, dtype=torch.promote_types(tokens.dtype, torch.float32))
    dtype, start = tokens.dtype, 0
    for number, count in enumerate(plan.count.tolist()):
        rows = slice(start, start + count)
        output = experts(tokens[plan.token[rows]], OneExpert(number))
        combined = combined.index_add(0, plan.token[rows], output.to(combined.dtype) * plan.weight[rows, None])
        dtype, start = output.dtype, start + count
    return combined.to(dtype)


def grouped(plan: SparsePlan, tokens: Tensor, experts: nn.Module) -> Tensor:
    """Live rows only, whatever the load, and no graph break. On CPU an operator reads the counts and multiplies each
    expert's rows in turn. Elsewhere nothing waits for the device: one grouped product in bfloat16, tiles of rows in
    other types, whose grouped products would wait."""
    if tokens.device.type != "cpu" and _product_dtype(tokens) != torch.bfloat16:
        return _tiled(plan, tokens, experts, _Tiles.of_height(plan, TILE))
    return combine(plan, experts(dispatch(plan, tokens), _SortedRows(plan)))


def padded(plan: SparsePlan, tokens: Tensor, experts: nn.Module) -> Tensor:
    """Every expert gets a buffer of the plan's capacity, one batched product multiplies all: static shapes, no graph
    break. Without a capacity a buffer holds all tokens, which costs E times the work."""
    return _tiled(plan, tokens, experts, _Tiles.of_capacity(plan))


def _tiled(plan: SparsePlan, tokens: Tensor, experts: nn.Module, tiles: "_Tiles") -> Tensor:
    rows = dispatch(plan, tokens)
    if not rows.shape[0]:  # Slots must point at something.
        rows = F.pad(rows, (0, 0, 0, 1))
    x = torch.where(tiles.used[..., None], rows[tiles.row_of_slot], 0)
    y = experts(x, tiles).flatten(0, 1)
    return combine(plan, torch.where(tiles.live[:, None], y[tiles.slot_of_row], 0))


class OneExpert:
    """Rows (n, d), all of one expert."""

    def __init__(self, number: int):
        self.number = number

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        return F.linear(x, layer.weight[self.number], None if layer.bias is None else layer.bias[self.number])

    def expand(self, parameter: Tensor) -> Tensor:
        return parameter[self.number]


class _Tiles:
    """Rows in tiles (tiles, height, d), each of one expert and padded with zeros: a batched product, static shapes.

    `expert_of_tile` is None where tile and expert are the same number. `used` (tiles, height): slots that hold a row;
    `row_of_slot` (tiles, height); `slot_of_row` (R,); `live` (R,).
    """

    def __init__(self, plan: SparsePlan, height: int, tiles: int, one_each: bool):
        device, num_rows = plan.token.device, plan.token.shape[0]
        row, tile = torch.arange(num_rows, device=device), torch.arange(tiles, device=device)
        ends = plan.count.cumsum(0)
        start = ends - plan.count
        tiles_of = torch.ones_like(ends) if one_each else (plan.count + height - 1) // height
        tile_end = tiles_of.cumsum(0)
        tile_start = tile_end - tiles_of
        expert = tile if one_each else (tile[:, None] >= tile_end).sum(1).clamp_max(len(ends) - 1)
        position = (tile - tile_start[expert])[:, None] * height + torch.arange(height, device=device)
        self.expert_of_tile = None if one_each else expert
        self.used = position < plan.count[expert][:, None]
        self.row_of_slot = (start[expert][:, None] + position).clamp(0, max(num_rows - 1, 0))
        self.live = row < ends[-1]
        expert_of_row = (row[:, None] >= ends).sum(1).clamp_max(len(ends) - 1)
        slot = tile_start[expert_of_row] * height + row - start[expert_of_row]
        self.slot_of_row = slot.clamp(0, tiles * height - 1)

    @staticmethod
    def of_capacity(plan: SparsePlan) -> "_Tiles":
        return _Tiles(plan, plan.num_tokens if plan.capacity is None else plan.capacity, len(plan.count), True)

    @staticmethod
    def of_height(plan: SparsePlan, height: int) -> "_Tiles":
        return _Tiles(plan, height, plan.token.shape[0] // height + len(plan.count), False)

    def _of_tiles(self, parameter: Tensor) -> Tensor:
        return parameter if self.expert_of_tile is None else parameter.index_select(0, self.expert_of_tile)

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        weight = self._of_tiles(layer.weight).mT
        return torch.bmm(x, weight) if layer.bias is None else torch.baddbmm(self.expand(layer.bias), x, weight)

    def expand(self, parameter: Tensor) -> Tensor:
        return self._of_tiles(parameter)[:, None]


class _SortedRows:
    """Rows (R, d) sorted by expert: one product of all."""

    def __init__(self, plan: SparsePlan):
        self.count, row = plan.count, torch.arange(plan.token.shape[0], device=plan.token.device)[:, None]
        ends = plan.count.cumsum(0)
        self.ends = ends.to(torch.int32)
        self.member = (row >= ends - plan.count) & (row < ends)
        self.live = row < ends[-1]

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        dtype = _product_dtype(x)
        x, weight = x.to(dtype), layer.weight.to(dtype)
        if x.device.type == "cpu":
            return grouped_linear(x, weight, None if layer.bias is None else layer.bias.to(dtype), self.count)
        # The device's product leaves dead rows undefined, forward and backward: zeros replace them on either side.
        y = torch.where(self.live, F.grouped_mm(torch.where(self.live, x, 0), weight.mT, offs=self.ends), 0)
        return y if layer.bias is None else y + self.expand(layer.bias).to(dtype)

    def expand(self, parameter: Tensor) -> Tensor:
        # A product, not a gather, whose backward would add thousands of rows into each expert's one by one.
        return self.member.to(parameter.dtype) @ parameter


def _product_dtype(tokens: Tensor) -> torch.dtype:
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tokens.dtype
