"""The index of a reference checkpoint: its tensors, and the data file of each part of each tensor."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .messagepack import Extension, unpack

VERSION = "20220622"
SLICES, LEAF = 6, 8
"""Codes of extensions: an n-dimensional slice, a leaf of the index."""
_KINDS = ["bool", "float16", "float32", "float64", "complex64", "complex128"]
_KINDS += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
STORED = {kind: np.dtype(kind).newbyteorder("<") for kind in _KINDS} | {"bfloat16": np.dtype("<u2")}
"""Storage dtype of each type; bfloat16 is the upper half of a float32."""
MOST_AXES, MOST_CELLS = 32, 2**24

Cell = tuple[tuple[int, int], ...]
"""Start and stop along each axis."""


@dataclass(frozen=True)
class Leaf:
    """One tensor. `cells` counts its parts, each with its data file: once, except for empty parts."""

    name: str
    shape: tuple[int, ...]
    kind: str
    cells: Counter[tuple[Cell, int]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array that the tensor is read into."""
        return np.dtype(np.float32) if self.kind == "bfloat16" else STORED[self.kind].newbyteorder("=")


def read_index(path: Path) -> tuple[int, list[Leaf]]:
    """Reads an index: the number of data files, and the tensors in the order of their numbers in the data files.

    **Raises:** FileNotFoundError; ValueError for a file that is not an index, or an inconsistent one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a reference checkpoint is PREFIX.index and PREFIX.data-…")
    try:
        index = unpack(path.read_bytes())
        if not isinstance(index, dict) or not {"shard_count", "index"} <= set(index):
            raise ValueError("it is not a map with shard_count and index")
        if "version" in index and index["version"] != VERSION:
            raise ValueError(f"it has version {index['version']!r}; accepted are {VERSION!r} and no version")
        shards = index["shard_count"]
        if type(shards) is not int or shards < 1:
            raise ValueError(f"shard_count is {shards!r}, expected a number of files ≥ 1")
        # Older files number tensors in the order in which they are in the file.
        leaves = [_read_leaf(name, tree, shards) for name, tree in _walk(index["index"], (), "version" in index)]
        if twice := [name for name, count in Counter(leaf.name for leaf in leaves).items() if count > 1]:
            raise ValueError(f"duplicate tensor {twice[0]!r}")
    except ValueError as error:
        raise ValueError(f"{path} is not a valid index of a reference checkpoint: {error}") from error
    return shards, leaves


def _walk(tree: Any, path: tuple[str, ...], by_name: bool) -> Iterator[tuple[str, Extension]]:
    """Iterates over leaves of nested maps, depth first; `by_name`: keys are sorted as strings, 10 before 2."""
    name = "/".join(path)
    if isinstance(tree, dict):
        for key in sorted(tree) if by_name else tree:
            yield from _walk(tree[key], (*path, key), by_name)
    elif isinstance(tree, Extension):
        if tree.code != LEAF:
            raise ValueError(f"tensor {name!r} has ext code {tree.code}, expected {LEAF}")
        yield name, tree
    elif tree is not None:
        raise ValueError(f"{name!r} has type {type(tree).__name__}, expected a map, nil or ext {LEAF}")


def _read_leaf(name: str, extension: Extension, shards: int) -> Leaf:
    try:
        header, slices, files = _list("an entry", extension.payload, 3)
        shape, kind, _, _ = _list("shape and type", header, 4)
        if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_is_size(length) for length in shape):
            raise ValueError(f"its shape is {str(shape)[:80]}, expected up to {MOST_AXES} lengths")
        kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
        if kind not in STORED:
            raise ValueError(f"its type is {str(kind)[:80]!r}; accepted are {', '.join(STORED)}")
        if math.prod(length or 1 for length in shape) * STORED[kind].itemsize >= 2**62:
            raise ValueError(f"its shape {tuple(shape)} exceeds any memory")
        if not isinstance(slices, list) or not isinstance(files, list) or len(slices) != len(files):
            raise ValueError("it does not have one data file per slice")
        for file in files:
            if not _is_size(file) or file >= shards:
                raise ValueError(f"its data file is {file!r}, but there are {shards}")
        cells = [read_cell(part, tuple(shape)) for part in slices]
        _check_cover(cells, tuple(shape))
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from error
    return Leaf(name, tuple(shape), kind, Counter(zip(cells, files, strict=True)))


def read_cell(payload: Any, shape: tuple[int, ...]) -> Cell:
    """An n-dimensional slice of an array of this shape. **Raises:** ValueError."""
    axes = _list("a slice", payload, len(shape))
    return tuple(_bounds(_list("a slice", axis, 3), length) for axis, length in zip(axes, shape, strict=True))


def _bounds(items: list[Any], length: int) -> tuple[int, int]:
    start, stop, step = items
    start, stop = 0 if start is None else start, length if stop is None else stop
    if step is not None and not (type(step) is int and step == 1):
        raise ValueError(f"a slice has step {step!r}; accepted are slices without steps")
    if not _is_size(start) or not _is_size(stop) or not start <= stop <= length:
        raise ValueError(f"the slice from {start!r} to {stop!r} is not within an axis of {length}")
    return start, stop


def _list(name: str, payload: Any, length: int) -> list[Any]:
    """Unpacks an embedded document, a list with `length` items; text is read as bytes."""
    if not isinstance(payload, bytes):
        raise ValueError(f"{name} has type {type(payload).__name__}, expected bytes")
    items = unpack(payload, raw=True)
    if not isinstance(items, list) or len(items) != length:
        raise ValueError(f"{name} is {str(items)[:80]}, expected a list of {length}")
    return items


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def size_of(cell: Cell) -> int:
    return math.prod(stop - start for start, stop in cell)


def _check_cover(cells: list[Cell], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless each element of the array is in exactly one cell."""
    covered = sum(map(size_of, cells))
    if covered != math.prod(shape):
        raise ValueError(f"its slices have {covered:,} elements, its shape {shape} has {math.prod(shape):,}")
    if len(cells) == 1 or not math.prod(shape):
        return
    # In total the cells have as many elements as the array, so they cover it unless two of them overlap. Each cell
    # marks its elements on the grid of all bounds.
    bounds = [sorted(set(itertools.chain(*(cell[axis] for cell in cells)))) for axis in range(len(shape))]
    steps = [{bound: number for number, bound in enumerate(along)} for along in bounds]
    if math.prod(len(along) for along in bounds) > MOST_CELLS:
        raise ValueError(f"its {len(cells):,} slices do not form a grid")
    is_covered = np.zeros([len(along) for along in bounds], np.bool_)
    for cell in cells:
        part = is_covered[
            tuple(slice(step[start], step[stop]) for step, (start, stop) in zip(steps, cell, strict=True))
        ]
        if part.any():
            raise ValueError(f"the slice {cell} overlaps another one")
        part[...] = True
