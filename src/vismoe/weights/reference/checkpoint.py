"""Checkpoints of google-research/vmoe: `PREFIX.index` and `PREFIX.data-00000-of-0000N`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from .index import SLICES, STORED, Cell, Leaf, read_cell, read_index, size_of
from .messagepack import Packed

MARKER = "__msgpack_array_chunk_a87ca2__"
"""The key that marks files with parts of arrays."""
ARRAY = 1
LONGEST_SLICE = 4096
LONGEST_TYPE = 32


def read_reference(prefix: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a checkpoint of google-research/vmoe: parameters, or a whole training state.

    Memory: that of the arrays, and while reading as much again as the largest one. No more is allocated than the size
    of the files (twice that for bfloat16).

    **Arguments:**

    - `prefix`: the path of the files without `.index` and `.data-…`.

    **Returns:** {"/"-joined name: array}, bfloat16 as float32 (exact). Empty maps and nils have no arrays.

    **Raises:** FileNotFoundError for missing files; ValueError, with file and tensor, for files that are damaged or do
    not match each other.
    """
    checkpoint = Checkpoint(prefix)
    arrays = {leaf.name: np.empty(leaf.shape, leaf.dtype) for leaf in checkpoint.leaves}
    checkpoint.fill(arrays)
    return arrays


@dataclass(frozen=True)
class _Piece:
    """Position and length, in bytes, of some elements of a tensor in their file."""

    start: int
    length: int


class Checkpoint:
    """A checkpoint: its index, and its data files, which must exist and be large enough.

    **Raises:** as `read_reference`.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(str(prefix).removesuffix(".index"))
        self.index = Path(f"{self.prefix}.index")
        self.shards, self.leaves = read_index(self.index)
        for shard in range(self.shards):
            if not self.file(shard).is_file():
                names = [leaf.name for leaf in self.leaves if any(cell_shard == shard for _, cell_shard in leaf.cells)]
                content = f", with {'parts of ' * bool(names)}{', '.join(names[:3]) or 'no tensors'}"
                raise FileNotFoundError(f"{self.file(shard)}: no such file; {self.index.name} requires it{content}")
        self._check_sizes()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {leaf.name: leaf.shape for leaf in self.leaves}

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        return {leaf.name: leaf.dtype for leaf in self.leaves}

    def file(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.shards:05d}")

    def _check_sizes(self) -> None:
        """Raises ValueError if a data file is smaller than the index requires. Called before memory is allocated."""
        left: dict[int, int] = {}
        for leaf in self.leaves:
            for (cell, shard), count in leaf.cells.items():
                size = left.get(shard, self.file(shard).stat().st_size if shard not in left else 0)
                left[shard] = size - count * size_of(cell) * STORED[leaf.kind].itemsize
                if left[shard] < 0:
                    raise ValueError(
                        f"{self.file(shard)}: tensor {leaf.name!r}: the file is smaller than "
                        f"{self.index.name} requires: it is truncated, or of another checkpoint"
                    )

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Reads the named tensors into arrays of their shapes, one data file after the other. Checks that each part of
        each tensor is present once.

        **Raises:** ValueError, with file and tensor; the arrays are then invalid.
        """
        for shard in range(self.shards):
            counts = self._read_file(shard, arrays)
            for leaf in self.leaves:
                for (cell, cell_shard), count in leaf.cells.items():
                    if cell_shard == shard and size_of(cell) and counts[leaf.name, cell] < count:
                        raise ValueError(
                            f"{self.file(shard)}: tensor {leaf.name!r}: the part {_cell_text(cell)} is missing"
                        )

    def _read_file(self, shard: int, arrays: Mapping[str, np.ndarray]) -> Counter[tuple[str, Cell]]:
        """Reads one data file into the arrays. Returns how often each part of a tensor is present."""
        path, counts = self.file(shard), Counter[tuple[str, Cell]]()
        has_marker, keys, where = False, set(), str(path)
        try:
            with open(path, "rb") as file:
                packed = Packed(file, path.stat().st_size)
                for _ in range(packed.expect("the map of a data file", "map")):
                    if (key := packed.key()) in keys:
                        raise ValueError(f"duplicate key {key!r}")
                    keys.add(key)
                    if key == MARKER:
                        has_marker = packed.expect(f"true, for {MARKER},", "bool")
                        continue
                    leaf = self._leaf(key)
                    where = f"{path}: tensor {leaf.name!r}"
                    for _ in range(packed.expect("a list of parts", "array")):
                        cell, pieces = _read_part(packed, leaf)
                        counts[leaf.name, cell] += 1
                        if counts[leaf.name, cell] > leaf.cells[cell, shard]:
                            raise ValueError(
                                f"{self.index.name} has no part {_cell_text(cell)} here, or it is here twice"
                            )
                        if leaf.name in arrays:
                            slices: tuple[Any, ...] = (*(slice(*axis) for axis in cell), ...)
                            _read_pieces(arrays[leaf.name][slices], leaf.kind, file, pieces)
                            file.seek(packed.position)
                    where = f"{path}: after tensor {leaf.name!r}"
                if not has_marker:
                    raise ValueError(f"it is not a data file of a checkpoint: it has no {MARKER}: true")
                packed.end()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return counts

    def _leaf(self, key: str) -> Leaf:
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= number < len(self.leaves) or str(number) != key:
            raise ValueError(f"the key {key[:80]!r} is not the number of one of {len(self.leaves)} tensors")
        return self.leaves[number]


def _read_part(packed: Packed, leaf: Leaf) -> tuple[Cell, list[_Piece]]:
    """Reads the header of the next part: its slice of the tensor, and the position of its elements, which are not
    read."""
    if (items := packed.expect("a part", "array")) != 2:
        raise ValueError(f"a part has {items} items, expected pieces and a slice")
    pieces = [_read_piece(packed, leaf.kind) for _ in range(packed.expect("a list of pieces", "array"))]
    if (length := packed.extension("a slice", SLICES)) > LONGEST_SLICE:
        raise ValueError(f"a slice has {length:,} bytes, expected at most {LONGEST_SLICE:,}")
    cell = read_cell(packed.take(length), leaf.shape)
    size, expected = sum(piece.length for piece in pieces), size_of(cell) * STORED[leaf.kind].itemsize
    if size != expected:
        raise ValueError(f"the part {_cell_text(cell)} has {size:,} bytes, expected {expected:,}")
    return cell, pieces


def _read_piece(packed: Packed, kind: str) -> _Piece:
    """Reads the header of the next piece, a one-dimensional array."""
    end = packed.extension("a piece", ARRAY) + packed.position
    if packed.expect("a piece", "array") != 3 or packed.expect("the shape of a piece", "array") != 1:
        raise ValueError("a piece is not a one-dimensional array: expected [length], type and bytes")
    count = packed.expect("the length of a piece", "int")
    type_bytes = packed.take(min(packed.expect("the type of a piece", "str", "bin"), LONGEST_TYPE))
    if type_bytes != kind.encode():
        raise ValueError(f"a piece has type {type_bytes!r}, expected {kind!r}")
    length = packed.expect("the elements of a piece", "bin", "str")
    start = packed.skip(length)
    if length != count * STORED[kind].itemsize or packed.position != end:
        raise ValueError(f"a piece of {count:,} elements has {length:,} bytes, in an array of {end - start:,}")
    return _Piece(start, length)


def _read_pieces(view: np.ndarray, kind: str, file: BufferedIOBase, pieces: list[_Piece]) -> None:
    """Reads consecutive pieces, in C order, into a view of an array. Converts their type if it differs."""
    stored = STORED[kind]
    buffer = view if view.flags.c_contiguous and view.dtype == stored else np.empty(view.shape, stored)
    if not buffer.size:
        return
    memory, position = buffer.reshape(-1).view(np.uint8).data, 0
    for piece in pieces:
        file.seek(piece.start)
        if file.readinto(memory[position : position + piece.length]) != piece.length:
            raise ValueError("the file was truncated while it was read")
        position += piece.length
    if kind == "bool" and buffer.view(np.uint8).max() > 1:
        raise ValueError("a bool is neither 0 nor 1")
    if kind == "bfloat16":
        # bfloat16 is the upper half of a float32. Shifted in place, without a copy.
        wide = view if view.dtype == np.float32 else np.empty(view.shape, np.float32)
        bits = wide.view(np.uint32)
        bits[...] = buffer
        np.left_shift(bits, 16, out=bits)
        buffer = wide
    if buffer is not view:
        view[...] = buffer


def _cell_text(cell: Cell) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in cell)}]"
