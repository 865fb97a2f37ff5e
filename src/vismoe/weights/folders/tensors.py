"""Where tensors lie in a .safetensors file, and reading them, or parts of them, into memory of one's own.

The file is read with large reads and not mapped: how much is read is then known, and memory that held one expert can
hold the next.
"""

import itertools
import json
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in a file."""


@dataclass(frozen=True)
class Place:
    """A tensor in a file.

    - `offset`: of its first byte in the file.
    - `shape`, `dtype`: as in PyTorch.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def entry(self, number: int) -> "Place":
        """One entry of the first dimension."""
        entry = Place(self.offset, self.shape[1:], self.dtype)
        return Place(self.offset + number * entry.nbytes, entry.shape, entry.dtype)


class TensorFile:
    """An open .safetensors file.

    **Arguments:** `path`: the file.

    **Attributes:** `path`; `places`: a `Place` for each tensor, by name.

    **Raises:** ValueError if it is not a whole .safetensors file, or has tensors of other types than `DTYPES`.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            # This checks that the header is valid and fits the file's size. With "pt", the file is mapped so that it
            # could be written to, which Linux refuses for one that is larger than the memory.
            with safe_open(path, "np"):
                pass
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        header = json.loads(os.pread(self._descriptor, length, 8))
        header.pop("__metadata__", None)
        others = sorted({entry["dtype"] for entry in header.values()} - set(DTYPES))
        if others:
            raise ValueError(f"{path} has tensors of type {others[0]}: accepted are {', '.join(DTYPES)}")
        self.places = {
            name: Place(8 + length + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
            for name, entry in header.items()
        }

    def read(self, name: str) -> Tensor:
        """Reads one tensor."""
        return self.read_part(name, [slice(None)] * len(self.places[name].shape))

    def read_part(self, name: str, part: Sequence[slice]) -> Tensor:
        """Reads a part of one tensor, and nothing else.

        **Arguments:**

        - `name`: name of the tensor.
        - `part`: a slice without step for each dimension.
        """
        place = self.places[name]
        ranges = [range(*each.indices(size)) for each, size in zip(part, place.shape, strict=True)]
        strides = [math.prod(place.shape[dim + 1 :]) for dim in range(len(ranges))]
        # The dimensions before the last one of which not all is read: each of their indices is a run of bytes.
        outer = max((dim for dim, each in enumerate(ranges) if len(each) < place.shape[dim]), default=0)
        tensor = torch.empty([len(each) for each in ranges], dtype=place.dtype)
        if not tensor.numel():
            return tensor
        memory = tensor.flatten().view(torch.uint8).numpy().data
        run = Place(0, tuple(tensor.shape[outer:]), place.dtype)
        first = ranges[outer].start * strides[outer] if ranges else 0
        for number, index in enumerate(itertools.product(*ranges[:outer])):
            begin = first + sum(each * stride for each, stride in zip(index, strides, strict=False))
            read = Place(place.offset + begin * place.dtype.itemsize, run.shape, run.dtype)
            self.read_into(read, memory[number * run.nbytes : (number + 1) * run.nbytes])
        return tensor

    def read_into(self, place: Place, memory: memoryview) -> None:
        """Reads the bytes of a tensor into `memory`, which has its size. Other threads run meanwhile.

        **Raises:** OSError if the file has become shorter.
        """
        done = 0
        while done < place.nbytes:
            number = os.preadv(self._descriptor, [memory[done:]], place.offset + done)
            if not number:
                raise OSError(f"{self.path} has become shorter while it was read: restore the file")
            done += number
