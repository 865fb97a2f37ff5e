"""Reads experts from a file into a few pieces of memory, ahead of their use."""

import mmap
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..folders.tensors import Place, TensorFile

READERS = 4
"""Threads that read. (Cold reads of 18 MB on a virtual disk: one thread 0.2 to 0.4 GB/s, two 0.7, four 1.0.)"""
WASTE = 0.02
"""Largest share of bytes that may be read for nothing, by guesses of what the next layer's plan will name."""
ALIGNMENT = 64
"""Matrices begin at multiples of this many bytes, as PyTorch's own."""
Expert = tuple[int, int]
"""The number of a sparse layer and of an expert in it."""


@dataclass
class _Held:
    """An expert in memory, or on its way there: its piece of memory, its matrices by name, and the reads of them."""

    memory: mmap.mmap
    matrices: dict[str, Tensor] = field(default_factory=dict)
    reads: list[Future[None]] = field(default_factory=list)


class ExpertStore:
    """The experts' matrices of a network, read from its file when they are needed.

    Memory is cut into pieces of one expert. A layer's experts are read into them in turn; while they are multiplied,
    the next ones are read. If a layer's plan named nearly all its experts, the next layer's are read ahead of its plan.
    Pieces that are not needed for reading keep the experts that were read first, for the next forward pass: of layers
    that are used in turn, these are the best ones to keep.

    **Arguments:**

    - `file`: the file.
    - `layers`: for each sparse layer, in order, the stacked matrices of its experts (E, out, in), by name.

    **Attributes:**

    - `piece`: size of a piece of memory, in bytes.
    - `bytes_named`: the matrices of all experts that plans named, in bytes; each is counted at each call.
    - `bytes_read`: what was read, in bytes.
    """

    def __init__(self, file: TensorFile, layers: Sequence[Mapping[str, Place]]):
        self.file, self.layers = file, layers
        self.num_experts = [next(iter(stacked.values())).shape[0] for stacked in layers]
        self.expert_bytes = [sum(place.entry(0).nbytes for place in stacked.values()) for stacked in layers]
        self.piece = max(sum(_aligned(place.entry(0).nbytes) for place in stacked.values()) for stacked in layers)
        self.piece = -(-self.piece // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes_named = self.bytes_read = self._bytes_unused = 0
        self._readers = ThreadPoolExecutor(READERS, "vismoe-read")
        self._lock = threading.Lock()
        self._capacity = 1
        self._held: dict[Expert, _Held] = {}
        self._free: list[mmap.mmap] = []
        self._kept: set[Expert] = set()
        self._guessed: set[Expert] = set()

    @property
    def resident_bytes(self) -> int:
        """Memory of all pieces, in bytes."""
        return (len(self._held) + len(self._free)) * self.piece

    def experts(
        self, layer: int, named: Sequence[int], room: int
    ) -> Generator[tuple[int, dict[str, Tensor]], None, None]:
        """Yields the named experts of a layer in any order, as pairs of their number and their matrices (out, in) by
        name, which hold until the next pair is asked for.

        **Arguments:**

        - `layer`: number of the layer.
        - `named`: numbers of its experts.
        - `room`: the most memory that pieces may take, in bytes, at least one piece.
        """
        with self._lock:
            try:
                wanted = [(layer, number) for number in named]
                self.bytes_named += len(wanted) * self.expert_bytes[layer]
                self._make_room(wanted, max(1, room // self.piece))
                missing = deque(expert for expert in wanted if expert not in self._held)
                order = [expert for expert in wanted if expert in self._held] + [*missing]
                guesses = self._guess(layer, len(named))
                for expert in order:
                    self._read_ahead(missing, guesses)
                    for read in self._held[expert].reads:
                        read.result()
                    yield expert[1], self._held[expert].matrices
                    self._release(expert)
                self._read_ahead(missing, guesses)
            except BaseException:  # of a read or of the caller: what is on its way is given up
                self._drop([*self._held])
                self._free.clear()
                raise

    def _make_room(self, wanted: Sequence[Expert], capacity: int) -> None:
        """Gives up guesses that were wrong, and what is kept where that leaves too few pieces for reading."""
        self._capacity = capacity
        needed = set(wanted)
        wrong, right = self._guessed - needed, self._guessed & needed
        self._guessed.clear()
        for expert in wrong:
            self._bytes_unused += self.expert_bytes[expert[0]]
            self._release(expert)
        missing = sum(expert not in self._held for expert in wanted)
        excess = len(self._held) + min(missing, self._window) - capacity
        if excess > 0:
            others = [expert for expert in self._held if expert not in needed]
            latest = [*reversed(others), *(expert for expert in reversed(self._held) if expert in needed)]
            # Of these, what was guessed and is needed will be read again.
            self._bytes_unused += sum(self.expert_bytes[layer] for layer, _ in right.intersection(latest[:excess]))
            self._drop(latest[:excess])
        del self._free[max(0, capacity - len(self._held)) :]

    @property
    def _window(self) -> int:
        """Number of pieces for reading: those of a whole layer, if that leaves as many for keeping."""
        return max(1, min(max(self.num_experts), -(-self._capacity // 2)))

    def _guess(self, layer: int, number: int) -> deque[Expert]:
        """The next layer's experts, if its plan will name nearly all: at most one less than this layer's did."""
        idle = (self.num_experts[layer] - number + 1) * self.expert_bytes[layer]
        if layer + 1 == len(self.layers) or self._bytes_unused + idle > WASTE * self.bytes_named:
            return deque()
        following = ((layer + 1, expert) for expert in range(self.num_experts[layer + 1]))
        return deque(expert for expert in following if expert not in self._held)

    def _read_ahead(self, missing: deque[Expert], guesses: deque[Expert]) -> None:
        """Starts to read the missing experts, then the guessed ones, while there is memory for them."""
        for waiting in (missing, guesses):
            while waiting and (self._free or len(self._held) < self._capacity):
                expert = waiting.popleft()
                if waiting is guesses:
                    self._guessed.add(expert)
                self._start(expert, self._free.pop() if self._free else _new_memory(self.piece))

    def _start(self, expert: Expert, memory: mmap.mmap) -> None:
        held = self._held[expert] = _Held(memory)
        layer, number = expert
        start = 0
        for name, stacked in self.layers[layer].items():
            place = stacked.entry(number)
            part = memoryview(memory)[start : start + place.nbytes]
            held.matrices[name] = torch.frombuffer(part, dtype=place.dtype).view(place.shape)
            held.reads.append(self._readers.submit(self.file.read_into, place, part))
            start += _aligned(place.nbytes)
            self.bytes_read += place.nbytes

    def _release(self, expert: Expert) -> None:
        """After its use an expert is kept, or its memory becomes free."""
        if expert in self._kept or len(self._kept) < self._capacity - self._window:
            self._kept.add(expert)
        else:
            self._drop([expert])

    def _drop(self, experts: Sequence[Expert]) -> None:
        """Frees the memory of experts; of those that are being read, once that is over."""
        for expert in experts:
            held = self._held.pop(expert)
            places = self.layers[expert[0]].values()
            self.bytes_read -= sum(
                place.entry(0).nbytes for place, read in zip(places, held.reads, strict=False) if read.cancel()
            )
            wait([read for read in held.reads if not read.cancelled()])
            self._kept.discard(expert)
            self._guessed.discard(expert)
            self._free.append(held.memory)

    def __deepcopy__(self, memo: object) -> "ExpertStore":
        """The same store: copies of a network share the memory for reading."""
        return self


def _aligned(number: int) -> int:
    return -(-number // ALIGNMENT) * ALIGNMENT


def _new_memory(size: int) -> mmap.mmap:
    """Memory that is there at once, so that the system's figure of resident memory has it. It is given back as soon as
    nothing refers to it."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0))
