"""Products: multiply rows that are sorted by expert by the experts' weights.

A product is a function (experts, rows) -> outputs (R, d). `experts` is the experts' module, which it calls as a module;
`rows` are the `Rows` of any exchange. This file has `loop` (slow and simple, for tests), `grouped` (the default; it
computes only live rows) and `padded` (static shapes).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .compiled import compiled_answers
from .exchange import Rows, inside_transform
from .layouts import Batched, Buffers, OneExpert, Padded, SortedRows, Tiles, product_dtype

Product = Callable[[nn.Module, Rows], Tensor]
"""(experts, rows) -> the output of each row's expert, (R, d); any finite values for dead rows."""
TILE = 64
"""Rows per tile: a compromise between reading weights seldom and padding little."""


def loop(experts: nn.Module, rows: Rows) -> Tensor:
    """Computes one expert after the other. Slow, without static shapes; tests compare the other products with it."""
    counts: list[int] = rows.count.tolist()
    *parts, dead = rows.values.split([*counts, len(rows.values) - sum(counts)])
    answers = [experts(part, OneExpert(number)) for number, part in enumerate(parts)]
    return torch.cat([*answers, torch.zeros_like(dead, dtype=answers[0].dtype)])


def grouped(experts: nn.Module, rows: Rows) -> Tensor:
    """Computes only live rows, without a graph break.

    - On a CPU, compiled kernels (`vismoe.kernels`) compute plain experts in one call. Without kernels, and for experts
      with hooks, adapters or other types, an operator reads the counts and multiplies the rows expert by expert.
    - On other devices, bfloat16 uses PyTorch's grouped product. Other types use tiles, because their grouped product
      would synchronise with the device.
    - If all experts have equally many rows (`rows.even`), it is one batched product on every device.
    """
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
    """Computes one batched product over buffers of `rows.bound` rows per expert: static shapes, no graph break. Without
    a capacity, each buffer has space for all tokens, which costs E times as many MACs."""
    return _multiply_padded(experts, rows, Buffers(rows))


def _multiply_padded(experts: nn.Module, rows: Rows, layout: Padded) -> Tensor:
    return layout.take_out(experts(layout.put_in(rows.values), layout))
