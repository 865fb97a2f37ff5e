"""Batches in a reproducible order."""

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
    """Combines several numbers into one 63-bit seed (splitmix64)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


class Samples(Dataset[Sample]):
    """Transformed samples, indexed by (epoch, index). The random numbers of a sample depend only on (seed, epoch,
    index), so they are the same with any number of workers."""

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
    """Endless stream of (epoch, index): a new permutation in each epoch. `start`: number of samples to skip, for a
    resumed run."""

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
    """Splits each batch of an endless stream among `ranks` processes; yields the share of process `rank`.

    The processes take turns from both ends of a batch towards its middle. Two things follow: an image is in the same
    process as the image that mixup pairs it with, and the i-th micro-batch (gradient accumulation) of each share
    belongs to the i-th micro-batch of the whole batch.
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
    """Raises ValueError if a batch cannot be divided evenly, in pairs of images, among `ranks` processes."""
    if ranks > 1 and batch_size % (2 * ranks):
        above = batch_size + -batch_size % (2 * ranks)
        raise ValueError(
            f"batch_size={batch_size} for {ranks} processes: it must be a multiple of {2 * ranks}, as each process "
            f"takes pairs of images: use {above}"
        )


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
    """An endless loader of shuffled batches.

    **Arguments:**

    - `images`: the images.
    - `transform`: function applied to each sample.
    - `batch_size`: number of samples in a batch, over all processes.
    - `seed`: decides the order, and the random numbers of each sample.
    - `workers`: number of processes that prepare samples; default 0: this process.
    - `start`: number of samples to skip, for a resumed run; default 0.
    - `rank`: rank of this process; default 0.
    - `ranks`: number of processes that share each batch; default 1.
    - `collate`: function that makes a batch from a list of samples; default: PyTorch's, which stacks values. For
      boxes, whose numbers differ between images, use `collate_boxes`.

    **Returns:** a loader of batches: dictionaries with the names of the samples. By default each value is a stacked
    tensor, or a list of texts.

    **Raises:** ValueError if a batch cannot be divided evenly among the processes.
    """
    batches = SharedBatches(ShuffledForever(len(images), seed, start), batch_size, rank, ranks)
    samples = Samples(images, transform, seed)
    return DataLoader(
        samples, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=ignore_stop_signals
    )


def ignore_stop_signals(worker: int) -> None:
    """Makes a data worker ignore Ctrl-C, and SIGTERM unless it comes from the parent process.

    A terminal sends Ctrl-C, and a system that shuts down sends SIGTERM, to every process. The training process must
    decide when its workers stop, so that it can write a checkpoint first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_of_parent, daemon=True).start()


def _exit_on_sigterm_of_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def evaluation_batches(
    images: ImageSet, transform: Transform, batch_size: int, workers: int = 0, collate: Collate | None = None
) -> DataLoader[Any]:
    """A loader of all samples, once and in order. The last batch may be smaller.

    **Arguments:**

    - `images`: the images.
    - `transform`: function applied to each sample.
    - `batch_size`: number of samples in a batch.
    - `workers`: number of processes that prepare samples; default 0: this process.
    - `collate`: function that makes a batch from a list of samples; default: PyTorch's.

    **Returns:** a loader of batches, as `training_batches`.
    """
    keys = [(0, index) for index in range(len(images))]
    return DataLoader(
        Samples(images, transform),
        batch_size,
        sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=ignore_stop_signals,
    )
