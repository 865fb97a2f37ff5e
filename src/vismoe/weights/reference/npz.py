"""Google's dense ViTs as `.npz` files (vit_jax, AugReg, big_vision), with names of google-research/vmoe."""

import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

PREFIXES = ("opt/target/", "params/img/", "params/")
POSITIONS, CLASS_TOKEN = "Encoder/posembed_input/pos_embedding", "cls"
BFLOAT16 = np.dtype("V2")
"""numpy's dtype for bfloat16, which it does not support."""
RENAMED = (
    (r"^(Transformer/posembed_input/)?pos_embedding$", POSITIONS),
    (r"^Transformer/", "Encoder/"),
    # Old files number all modules of a block (LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3),
    # newer ones number each kind separately.
    (r"^(Encoder/encoderblock[^/]*/)MultiHeadDotProductAttention_[01]/", r"\1SelfAttention/"),
    (r"^(Encoder/encoderblock[^/]*/)LayerNorm_2/", r"\1LayerNorm_1/"),
    (r"^(Encoder/encoderblock[^/]*/)MlpBlock_[03]/", r"\1Mlp/"),
    (r"^MAPHead_0/MultiHeadDotProductAttention_0/", "MapHead/MultiHeadDotProductAttention/"),
    (r"^MAPHead_0/LayerNorm_0/", "MapHead/LayerNorm/"),
    (r"^MAPHead_0/MlpBlock_0/", "MapHead/Mlp/"),
    (r"^MAPHead_0/", "MapHead/"),
)
DENSEST = 1032
"""Max compression ratio of a zip file that numpy writes (deflate)."""
SCANNED = "Encoder/encoderblock/"
"""Prefix of big_vision's arrays with all blocks stacked along the first axis."""


@dataclass(frozen=True)
class _Member:
    """One array of the file."""

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class DenseNpz:
    """The arrays of a file, by the reference's names. They are read on demand, never unpickled.

    **Raises:** FileNotFoundError; ValueError, with file and array, for an invalid file.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.members = self._members()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype[Any]] = {}
        # For each name its array, and the block's index in it.
        self._places: dict[str, tuple[str, int | None]] = {}
        for name, member in self.members.items():
            renamed = _renamed(name)
            if renamed.startswith(SCANNED) and member.shape:
                for block in range(min(member.shape[0], 10_000)):
                    block_name = renamed.replace(SCANNED, f"Encoder/encoderblock_{block}/")
                    self._add(block_name, name, block, member.shape[1:])
            else:
                self._add(renamed, name, None, member.shape)
        # big_vision adds positions before it prepends the class token, the reference after.
        unprefixed = [name for name in self.members if name == "pos_embedding"]
        self.token_without_position = bool(unprefixed) and CLASS_TOKEN in self.shapes
        if self.token_without_position and len(shape := self.shapes[POSITIONS]) == 3:
            self.shapes[POSITIONS] = (shape[0], shape[1] + 1, shape[2])

    def _add(self, renamed: str, name: str, block: int | None, shape: tuple[int, ...]) -> None:
        if renamed in self.shapes:
            raise ValueError(f"{self.path}: {name} and {self._places[renamed][0]} are both {renamed}")
        self.shapes[renamed], self._places[renamed] = shape, (name, block)
        dtype = self.members[name].dtype
        self.dtypes[renamed] = np.dtype(np.float32) if dtype == BFLOAT16 else dtype

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Reads the named arrays into given arrays of their shapes. **Raises:** ValueError."""
        names_by_member: dict[str, list[str]] = {}
        for renamed in arrays:
            names_by_member.setdefault(self._places[renamed][0], []).append(renamed)
        for name, all_renamed in names_by_member.items():
            array = self._read(name)
            for renamed in all_renamed:
                block, target = self._places[renamed][1], arrays[renamed]
                if renamed == POSITIONS and self.token_without_position:
                    target[:, 0] = 0
                    target = target[:, 1:]
                target[...] = array if block is None else array[block]

    def _members(self) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                for entry in archive.infolist():
                    if entry.file_size > DENSEST * entry.compress_size:
                        sizes = f"{entry.file_size:,} bytes, compressed to {entry.compress_size:,}"
                        raise ValueError(f"array {entry.filename} claims {sizes}, which is impossible")
                    with archive.open(entry) as file:
                        read_header = {(1, 0): npy.read_array_header_1_0}.get(
                            npy.read_magic(file), npy.read_array_header_2_0
                        )
                        shape, _, dtype = read_header(file)
                        num_bytes = entry.file_size - file.tell()
                    if dtype.hasobject or min(shape, default=0) < 0 or num_bytes != math.prod(shape) * dtype.itemsize:
                        raise ValueError(
                            f"array {entry.filename} has {num_bytes:,} bytes, not those of {dtype} {shape}"
                        )
                    members[entry.filename.removesuffix(".npy")] = _Member(entry.filename, shape, dtype)
        except (*_DAMAGED, ValueError) as error:
            raise ValueError(f"{self.path} is not a readable .npz file: {error}") from error
        for prefix in PREFIXES:
            if any(name.startswith(prefix) for name in members):
                return {
                    name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)
                }
        return members

    def _read(self, name: str) -> np.ndarray:
        member = self.members[name]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(member.file) as file:
                array: np.ndarray = npy.read_array(file, allow_pickle=False)
        except (*_DAMAGED, ValueError) as error:
            raise ValueError(f"{self.path}: array {name} cannot be read: {error}") from error
        if array.dtype == BFLOAT16:
            array = (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return array


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # zipfile's, for an unknown compression
    RuntimeError,  # zipfile's, for a file with a password
    SyntaxError,  # numpy parses an array's header as Python
    tokenize.TokenError,
)
"""Errors when reading a damaged file; they become a ValueError that names the file."""


def _renamed(name: str) -> str:
    for pattern, other in RENAMED:
        name = re.sub(pattern, other, name)
    return name
