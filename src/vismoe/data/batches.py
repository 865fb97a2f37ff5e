"""Batches in a reproducible order, which depends only on (seed, epoch, index)."""

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
    """Transformed samples by (epoch, index). The random numbers of each depend on (seed, epoch, index) alone, so any
    number of workers gives the same stream."""

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
    """(epoch, index) of a new permutation each epoch, without end; `start` skips the samples that a resumed run has
    seen."""

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
    """One process's share of each batch of an endless stream that `ranks` processes read.

    Processes take turns from both ends of a batch towards its middle. So a process has each image together with the
    one that mixup pairs it with, and each micro-batch (gradient accumulation) of its share lies in the same micro-batch
    of the whole.
    """

    def __init__(self, stream: ShuffledForever, batch_size: int, rank: int = 0, ranks: int = 1):
        check_batch_size(batch_size, ranks)
        self.stream, self.batch_size = stream, batch_size
        last = batch_size - 1
        self.places = [place for place in range(batch_size) if min(place, last - place) % ranks == rank]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = iter(self.stream)
        while batch := list(itertools.islice(stream, self.batch_size)):
            yield [batch[place] for place in self.places]


def check_batch_size(batch_size: int, ranks: int) -> None:
    """Raises ValueError where `ranks` processes cannot share a batch evenly, in pairs."""
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

    **Arguments:**

    - `images`: the set.
    - `transform`: is applied to each sample.
    - `batch_size`: samples of a batch, over all processes.
    - `seed`: decides the order and each sample's random numbers.
    - `workers`: processes that prepare samples, default 0: this process.
    - `start`: number of samples of the stream that were seen before, default 0.
    - `rank`, `ranks`: number of this process and count of processes; each gets its share of every batch.
    - `collate`: makes a batch of a list of samples; default: values are stacked, which does not fit boxes and the like.

    **Returns:** a loader of batches: dictionaries with the names of the samples. By default the values of a name are
    stacked in a tensor, or in a list where they are text.
    """
    batches = SharedBatches(ShuffledForever(len(images), seed, start), batch_size, rank, ranks)
    samples = Samples(images, transform, seed)
    return DataLoader(
        samples, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=ignore_stop_signals
    )


def ignore_stop_signals(worker: int) -> None:
    """Makes a data worker ignore Ctrl-C, and SIGTERM of other processes than its parent. Both reach every process of a
    terminal or of a system that shuts down, and the training decides when its workers stop."""
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
    """A loader of every sample once, in order, in batches like those of `training_batches`; the last may be smaller."""
    keys = [(0, index) for index in range(len(images))]
    return DataLoader(
        Samples(images, transform),
        batch_size,
        sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=ignore_stop_signals,
    )
