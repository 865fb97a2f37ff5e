"""How a backend lays out rows: one expert's, padded tiles of several, or all of them sorted by expert."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..experts.stacked import StackedLinear
from ..plan import SparsePlan
from .grouped_linear import grouped_linear


class OneExpert:
    """Rows (n, d), all of one expert."""

    def __init__(self, number: int):
        self.number = number

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        return F.linear(x, layer.weight[self.number], None if layer.bias is None else layer.bias[self.number])

    def expand(self, parameter: Tensor) -> Tensor:
        return parameter[self.number]


class Batched:
    """Rows (E, n, d), as many of each expert: a batched product."""

    def of_tiles(self, parameter: Tensor) -> Tensor:
        """A parameter of each expert for each of the first dimension's entries."""
        return parameter

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        weight = self.of_tiles(layer.weight).mT
        return torch.bmm(x, weight) if layer.bias is None else torch.baddbmm(self.expand(layer.bias), x, weight)

    def expand(self, parameter: Tensor) -> Tensor:
        return self.of_tiles(parameter)[:, None]


class Tiles(Batched):
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
    def of_capacity(plan: SparsePlan) -> "Tiles":
        return Tiles(plan, plan.num_tokens if plan.capacity is None else plan.capacity, len(plan.count), True)

    @staticmethod
    def of_height(plan: SparsePlan, height: int) -> "Tiles":
        return Tiles(plan, height, plan.token.shape[0] // height + len(plan.count), False)

    def of_tiles(self, parameter: Tensor) -> Tensor:
        return parameter if self.expert_of_tile is None else parameter.index_select(0, self.expert_of_tile)


class SortedRows:
    """Rows (R, d) sorted by expert: one product of all."""

    def __init__(self, plan: SparsePlan):
        self.count, row = plan.count, torch.arange(plan.token.shape[0], device=plan.token.device)[:, None]
        ends = plan.count.cumsum(0)
        self.ends = ends.to(torch.int32)
        self.member = (row >= ends - plan.count) & (row < ends)
        self.live = row < ends[-1]

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        dtype = product_dtype(x)
        x, weight = x.to(dtype), layer.weight.to(dtype)
        if x.device.type == "cpu":
            return grouped_linear(x, weight, None if layer.bias is None else layer.bias.to(dtype), self.count)
        # The device's product leaves dead rows undefined, forward and backward: zeros replace them on either side.
        y = torch.where(self.live, F.grouped_mm(torch.where(self.live, x, 0), weight.mT, offs=self.ends), 0)
        return y if layer.bias is None else y + self.expand(layer.bias).to(dtype)

    def expand(self, parameter: Tensor) -> Tensor:
        # A product, not a gather, whose backward would add thousands of rows into each expert's one by one.
        return self.member.to(parameter.dtype) @ parameter


def product_dtype(tokens: Tensor) -> torch.dtype:
    """The type in which rows are multiplied: autocast's, where it is on."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tokens.dtype
