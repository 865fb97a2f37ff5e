"""A small writer of the reference's checkpoint files, for tests: MessagePack, arrays, index, data files."""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

VERSION = "20220622"
MARKER = "__msgpack_array_chunk_a87ca2__"


@dataclass(frozen=True)
class Ext:
    code: int
    payload: bytes


@dataclass(frozen=True)
class BFloat16:
    """The bits, uint16, of an array of bfloat16."""

    bits: np.ndarray


def pack(value: Any) -> bytes:
    """One MessagePack document."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if 0 <= value < 128:
            return bytes([value])
        return struct.pack(">BQ", 0xCF, value) if value >= 0 else struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        return _sized((0xA0, 32), (0xD9, 0xDA, 0xDB), len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return _sized(None, (0xC4, 0xC5, 0xC6), len(value)) + value
    if isinstance(value, list):
        return _sized((0x90, 16), (None, 0xDC, 0xDD), len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = b"".join(pack(key) + pack(item) for key, item in value.items())
        return _sized((0x80, 16), (None, 0xDE, 0xDF), len(value)) + items
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(value.payload))
    head = _sized(None, (0xC7, 0xC8, 0xC9), len(value.payload)) if fixed is None else bytes([fixed])
    return head + struct.pack("b", value.code) + value.payload


def _sized(short: tuple[int, int] | None, codes: tuple[int | None, int, int], length: int) -> bytes:
    if short is not None and length < short[1]:
        return bytes([short[0] | length])
    size = 0 if length < 2**8 and codes[0] is not None else 1 if length < 2**16 else 2
    return struct.pack(">B" + "BHI"[size], codes[size], length)


def plain(leaf: Any) -> tuple[np.ndarray, str]:
    """What is stored of a leaf, and the name of its type."""
    return (leaf.bits, "bfloat16") if isinstance(leaf, BFloat16) else (leaf, leaf.dtype.name)


def packed_slice(cell: tuple[tuple[int, int], ...]) -> bytes:
    return pack([pack([start, stop, None]) for start, stop in cell])


def packed_leaf(shape: tuple[int, ...], kind: str, cells: list[Any], shards: list[int]) -> Ext:
    about = pack([list(shape), kind, False, {}])
    return Ext(8, pack([about, [packed_slice(cell) for cell in cells], shards]))


def piece(flat: np.ndarray, kind: str) -> Ext:
    return Ext(1, pack([list(flat.shape), kind, flat.tobytes()]))


def grid(shape: tuple[int, ...], random: Random, most: int = 3) -> list[tuple[tuple[int, int], ...]]:
    """Cuts each axis into up to `most` parts of any lengths."""
    axes = []
    for length in shape:
        bounds = sorted({0, length, *(random.randint(0, length) for _ in range(random.randint(0, most - 1)))})
        axes.append(list(itertools.pairwise(bounds)) or [(0, 0)])
    return list(itertools.product(*axes))


def numbered(tree: Any, version: bool) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and leaves in the order of their numbers."""
    for key in sorted(tree) if version else tree:
        if isinstance(tree[key], dict):
            yield from (((key, *path), leaf) for path, leaf in numbered(tree[key], version))
        elif tree[key] is not None:
            yield (key,), tree[key]


def write(
    prefix: Path,
    tree: dict[str, Any],
    shards: int = 1,
    version: bool = True,
    random: Random | None = None,
    cut: bool = True,
) -> None:
    """Writes a tree of dictionaries, None and arrays; each array cut anywhere, its parts anywhere, unless not `cut`."""
    random = random or Random(0)
    files: list[dict[str, Any]] = [{MARKER: True} for _ in range(shards)]
    entries = {}
    for number, (path, leaf) in enumerate(numbered(tree, version)):
        array, kind = plain(leaf)
        cells = grid(array.shape, random) if cut else [tuple((0, length) for length in array.shape)]
        places = [random.randrange(shards) for _ in cells]
        entries[path] = packed_leaf(array.shape, kind, cells, places)
        for cell, place in random.sample(list(zip(cells, places, strict=True)), len(cells)):
            flat = np.ascontiguousarray(array[(*(slice(*axis) for axis in cell), ...)]).reshape(-1)
            bounds = sorted({0, flat.size, *(random.randint(0, flat.size) for _ in range(random.randint(0, 2 * cut)))})
            pieces = [piece(flat[start:stop], kind) for start, stop in itertools.pairwise(bounds)]
            files[place].setdefault(str(number), []).append([pieces, Ext(6, packed_slice(cell))])

    def indexed(part: Any, path: tuple[str, ...]) -> Any:
        if isinstance(part, dict):
            return {key: indexed(value, (*path, key)) for key, value in part.items()}
        return None if part is None else entries[path]

    index = {"shard_count": shards, "index": indexed(tree, ())} | ({"version": VERSION} if version else {})
    prefix.with_name(f"{prefix.name}.index").write_bytes(pack(index))
    for shard, content in enumerate(files):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(pack(content))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"/"-joined name: array} as a tree."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        part = tree
        for key in path:
            part = part.setdefault(key, {})
        part[last] = leaf
    return tree
