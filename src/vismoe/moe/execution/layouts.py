"""Layouts of rows in a product: rows of one expert, padded tiles, or all rows sorted by expert."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..experts.stacked import StackedLinear
from ..resident import resident
from .exchange import Rows
from .grouped_linear import grouped_linear


class OneExpert:
    """Rows (n, d) of one expert."""

    def __init__(self, number: int):
        self.number = number

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        weight, bias = _parameters(layer, x)
        return F.linear(x, weight[self.number], None if bias is None else bias[self.number])

    def expand(self, parameter: Tensor) -> Tensor:
        return parameter[self.number]


class Batched:
    """Rows (E, n, d), equally many of each expert, for a batched product."""

    def of_tiles(self, parameter: Tensor) -> Tensor:
        """A per-expert parameter, with one entry per entry of the rows' first dimension."""
        return parameter

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        weight, bias = _parameters(layer, x)
        weight = self.of_tiles(weight).mT
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(self.expand(bias), x, weight)

    def expand(self, parameter: Tensor) -> Tensor:
        return self.of_tiles(parameter)[:, None]


class Padded(Batched):
    """Rows in tiles (tiles, height, d) of one expert each, padded with zeros, for a batched product of static shape.

    **Arguments:**

    - `rows`: the output of an exchange.
    - `height`: number of rows per tile.
    - `expert_T`: the expert of each tile.
    - `first_tile_E`: the first tile of each expert; its other tiles follow.
    """

    def __init__(self, rows: Rows, height: int, expert_T: Tensor, first_tile_E: Tensor):
        count, device, num_rows = rows.count, rows.values.device, len(rows.values)
        row, tile = torch.arange(num_rows, device=device), torch.arange(len(expert_T), device=device)
        end = count.cumsum(0)
        start = end - count
        position = (tile - first_tile_E[expert_T])[:, None] * height + torch.arange(height, device=device)
        self.used = position < count[expert_T][:, None]  # (tiles, height): whether a slot has a row
        self.row_of_slot = (start[expert_T][:, None] + position).clamp(0, max(num_rows - 1, 0))
        self.live = row < end[-1]
        expert_of_row = (row[:, None] >= end).sum(1).clamp_max(len(end) - 1)
        slot = first_tile_E[expert_of_row] * height + row - start[expert_of_row]
        self.slot_of_row = slot.clamp(0, len(expert_T) * height - 1)

    def put_in(self, values: Tensor) -> Tensor:
        """Rows (R, d) -> tiles."""
        if not len(values):  # slots need a row to index
            values = F.pad(values, (0, 0, 0, 1))
        return torch.where(self.used[..., None], values[self.row_of_slot], 0)

    def take_out(self, answers: Tensor) -> Tensor:
        """Tiles -> rows (R, d), 0 for dead rows."""
        return torch.where(self.live[:, None], answers.flatten(0, 1)[self.slot_of_row], 0)


class Buffers(Padded):
    """One tile per expert, with space for the largest possible number of its rows."""

    def __init__(self, rows: Rows):
        number_E = torch.arange(len(rows.count), device=rows.values.device)
        super().__init__(rows, rows.bound, number_E, number_E)


class Tiles(Padded):
    """Small tiles, as many per expert as its rows need. The total number of tiles is static."""

    def __init__(self, rows: Rows, height: int):
        tiles_E = (rows.count + height - 1) // height
        last_E = tiles_E.cumsum(0)
        tile = torch.arange(len(rows.values) // height + len(tiles_E), device=rows.values.device)
        self.expert_T = (tile[:, None] >= last_E).sum(1).clamp_max(len(tiles_E) - 1)
        super().__init__(rows, height, self.expert_T, last_E - tiles_E)

    def of_tiles(self, parameter: Tensor) -> Tensor:
        return parameter.index_select(0, self.expert_T)


class SortedRows:
    """Rows (R, d) sorted by expert, for one grouped product."""

    def __init__(self, rows: Rows):
        self.count, self.num_rows = rows.count, len(rows.values)
        self.member: Tensor | None = None

    def linear(self, x: Tensor, layer: StackedLinear) -> Tensor:
        dtype = product_dtype(x)
        weight, bias = _parameters(layer, x)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if x.device.type == "cpu":
            return grouped_linear(x, weight, bias, self.count)
        # The device's product leaves dead rows undefined, in forward and backward: both sides are set to 0.
        end = self.count.cumsum(0).to(torch.int32)
        live = torch.arange(self.num_rows, device=end.device)[:, None] < end[-1]
        y = torch.where(live, F.grouped_mm(torch.where(live, x, 0), weight.mT, offs=end), 0)
        return y if bias is None else y + self.expand(bias)

    def expand(self, parameter: Tensor) -> Tensor:
        # A matrix product, not a gather: the backward of a gather would add thousands of rows one by one.
        return self.members().to(parameter.dtype) @ parameter

    def members(self) -> Tensor:
        """(R, E): whether a row belongs to an expert. Computed on first use, because on a CPU only norms need it. (Not
        a cached property: compilers cannot trace one.)"""
        if self.member is None:
            end = self.count.cumsum(0)
            row = torch.arange(self.num_rows, device=end.device)[:, None]
            self.member = (row >= end - self.count) & (row < end)
        return self.member


def _parameters(layer: StackedLinear, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, each read only once, because a parametrization computes them at each access."""
    bias = layer.bias
    return resident(layer.weight, x), None if bias is None else resident(bias, x)


def product_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype in which rows are multiplied: autocast's if it is enabled, otherwise that of the tokens."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tokens.dtype
