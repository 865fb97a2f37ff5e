"""How rows that are sorted by expert are multiplied by the experts' weights.

A product is a callable (experts, rows) -> answers (R, d). It gets the experts' module, whose parts it calls as modules,
and `Rows` from any exchange. Here are `loop`, slow and obvious, the oracle; `grouped`, which computes live rows only;
`padded`, whose shapes are static. Others may fuse what `grouped` does in several calls.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .compiled import compiled_answers
from .exchange import Rows, inside_transform
from .layouts import Batched, Buffers, OneExpert, Padded, SortedRows, Tiles, product_dtype

Product = Callable[[nn.Module, Rows], Tensor]
"""(experts, rows) -> the answer of each row's expert, (R, d); for dead rows anything finite."""
TILE = 64
"""Rows of a tile: enough for a product to be worth its weights' transfer, few enough to pad little."""


def loop(experts: nn.Module, rows: Rows) -> Tensor:
    """One expert after the other. The oracle: slow, shapes not static."""
    counts: list[int] = rows.count.tolist()
    *parts, dead = rows.values.split([*counts, len(rows.values) - sum(counts)])
    answers = [experts(part, OneExpert(number)) for number, part in enumerate(parts)]
    return torch.cat([*answers, torch.zeros_like(dead, dtype=answers[0].dtype)])


def grouped(experts: nn.Module, rows: Rows) -> Tensor:
    """Computes live rows only, at any load, without a graph break. On a CPU compiled kernels serve where experts are plain
    (see `vismoe.kernels`); elsewhere an operator reads the counts and multiplies each expert's rows in turn. On other devices nothing waits for the device: bfloat16 takes one grouped product, other
    types, whose grouped products would wait, take tiles of rows. Even rows need no counts: one batched product on every
    device."""
    compiled = compiled_answers(experts, rows)
    if compiled is not None:
        return compiled
    if rows.even:
        answers: Tensor = experts(rows.values.view(len(rows.count), rows.bound, rows.values.shape[1]), Batched())
        return answers.flatten(0, 1)
    reads_counts = rows.values.device.type == "cpu" or product_dtype(rows.values) == torch.bfloat16
    if inside_transform() or not reads_counts:
        return _multiply_padded(experts, rows, Tiles(rows, TILE))
    sorted_answers: Tensor = experts(rows.values, SortedRows(rows))
    return sorted_answers


def padded(experts: nn.Module, rows: Rows) -> Tensor:
    """Gives every expert a buffer of `rows.bound` rows and multiplies all in one batched product: static shapes, no
    graph break. Without a capacity a buffer holds all tokens, which costs E times the work."""
    return _multiply_padded(experts, rows, Buffers(rows))


def _multiply_padded(experts: nn.Module, rows: Rows, layout: Padded) -> Tensor:
    return layout.take_out(experts(layout.put_in(rows.values), layout))
