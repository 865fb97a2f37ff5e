"""Batches in a reproducible order: what comes when depends on nothing but (seed, epoch, index)."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .image_set import ImageSet, Sample
from .transforms import Transform

Collate = Callable[[list[Sample]], dict[str, Any]]


def mix_seeds(*numbers: int) -> int:
    """One well-mixed 63-bit seed of several numbers (splitmix64)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


class Samples(Dataset[Sample]):
    """Transformed samples by (epoch, index). Each draws its randomness from (seed, epoch, index) alone, so any number
    of workers gives the same stream."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int = 0):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(mix_seeds(self.seed, epoch, index))
        try:
            return self.transform(self.images.sample(index))
        finally:
            torch.default_generator.set_state(state)


class ShuffledForever(Sampler[tuple[int, int]]):
    """(epoch, index) of a fresh permutation each epoch, without end; `start` skips what a resumed run has seen."""

    def __init__(self, length: int, seed: int, start: int = 0):
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, position = divmod(self.start, self.length)
        while True:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch, -1))
            for index in torch.randperm(self.length, generator=generator).tolist()[position:]:
                yield epoch, index
            epoch, position = epoch + 1, 0


class SharedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of an endless stream, of each the share of one of `ranks` processes.

    A process gets what stands at both ends of its batch in turn, so that it holds with each image the one that mixup
    pairs it with, and with each part of its share (gradient accumulation) a part of the same part of the whole.
    """

    def __init__(self, stream: ShuffledForever, batch_size: int, rank: int = 0, ranks: int = 1):
        check_shares(batch_size, ranks)
        self.stream, self.batch_size = stream, batch_size
        last = batch_size - 1
        self.mine = [place for place in range(batch_size) if min(place, last - place) % ranks == rank]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = iter(self.stream)
        while batch := list(itertools.islice(stream, self.batch_size)):
            yield [batch[place] for place in self.mine]


def check_shares(batch_size: int, ranks: int) -> None:
    """Raises ValueError where so many processes cannot share a batch evenly, in pairs."""
    if ranks > 1 and batch_size % (2 * ranks):
        raise ValueError(f"batch_size={batch_size} for {ranks} processes: it must be a multiple of {2 * ranks}")


def training_batches(
    images: ImageSet,
    transform: Transform,
    batch_size: int,
    seed: int,
    workers: int = 0,
    start: int = 0,
    rank: int = 0,
    ranks: int = 1,
    collate: Collate | None = None,
) -> DataLoader[Any]:
    """Endless shuffled batches.

    **Arguments:** `images`: the set; `transform`: of each sample; `batch_size`: samples of a batch, of all processes
    together; `seed`: decides the order and each sample's random numbers; `workers`: processes that prepare samples, 0:
    this one does; `start`: how many samples of the stream were seen before; `rank`, `ranks`: the number of this
    process, and of how many, each of which gets its share of every batch; `collate`: makes a batch of a list of samples
    that do not stack (boxes, …).

    **Returns:** a loader of batches: dictionaries of the samples' names, by default with all values of a name stacked
    in a tensor, or in a list where they are text.
    """
    batches = SharedBatches(ShuffledForever(len(images), seed, start), batch_size, rank, ranks)
    samples = Samples(images, transform, seed)
    return DataLoader(
        samples, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=leave_stopping
    )


def leave_stopping(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a system that shuts down asks every one to end: when to stop is
    for the training to say, not for its workers. What their parent sends them they obey."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def evaluation_batches(
    images: ImageSet, transform: Transform, batch_size: int, workers: int = 0, collate: Collate | None = None
) -> DataLoader[Any]:
    """Every sample once, in order, in batches as `training_batches` gives them; the last may be smaller."""
    keys = [(0, index) for index in range(len(images))]
    return DataLoader(
        Samples(images, transform),
        batch_size,
        sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=leave_stopping,
    )
