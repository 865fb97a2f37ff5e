"""How rows that are sorted by expert meet the experts' weights.

A product is a callable (experts, rows) -> answers (R, d): the experts' module itself, whose parts are called as
modules, and `Rows`, whatever exchange they came by. Here are `loop`, slow and obvious, the oracle; `grouped`, which
computes live rows only; `padded`, whose shapes are static. Others may fuse what `grouped` does in several calls.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .exchange import Rows
from .layouts import Batched, Buffers, OneExpert, Padded, SortedRows, Tiles, product_dtype

Product = Callable[[nn.Module, Rows], Tensor]
"""(experts, rows) -> the answer of each row's expert, (R, d); for dead rows anything finite."""
TILE = 64
"""Rows of a tile: enough for a product to be worth its weights' transfer, few enough to pad little."""


def loop(experts: nn.Module, rows: Rows) -> Tensor:
    """One expert after the other. The oracle: no speed, no static shapes."""
    counts: list[int] = rows.count.tolist()
    *parts, dead = rows.values.split([*counts, len(rows.values) - sum(counts)])
    answers = [experts(part, OneExpert(number)) for number, part in enumerate(parts)]
    return torch.cat([*answers, torch.zeros_like(dead, dtype=answers[0].dtype)])


def grouped(experts: nn.Module, rows: Rows) -> Tensor:
    """Live rows only, whatever the load, and no graph break. On CPU an operator reads the counts and multiplies each
    expert's rows in turn. Elsewhere nothing waits for the device: one grouped product in bfloat16, tiles of rows in
    other types, whose grouped products would wait. Even rows need no counts: one batched product, everywhere."""
    if rows.even:
        answers: Tensor = experts(rows.values.view(len(rows.count), rows.bound, rows.values.shape[1]), Batched())
        return answers.flatten(0, 1)
    if rows.values.device.type != "cpu" and product_dtype(rows.values) != torch.bfloat16:
        return _multiply_padded(experts, rows, Tiles(rows, TILE))
    sorted_answers: Tensor = experts(rows.values, SortedRows(rows))
    return sorted_answers


def padded(experts: nn.Module, rows: Rows) -> Tensor:
    """Every expert gets a buffer of the rows' bound, one batched product multiplies all: static shapes, no graph break.
    Without a capacity a buffer holds all tokens, which costs E times the work."""
    return _multiply_padded(experts, rows, Buffers(rows))


def _multiply_padded(experts: nn.Module, rows: Rows, layout: Padded) -> Tensor:
    return layout.take_out(experts(layout.put_in(rows.values), layout))
