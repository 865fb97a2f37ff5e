"""A bounded queue of images, and one thread that runs them in batches."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .requests.errors import ServiceError
from .requests.logs import log


class Work(Protocol):
    """What is done with images. Images of equal works share a batch.

    - `largest`: number of images in a batch, at most; None: the batcher's number.
    """

    largest: int | None

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        """The result for each value."""


@dataclass
class Job:
    """An image that waits.

    - `work`: what is done with it.
    - `value`: the prepared image.
    - `result`: the result, later.
    - `arrived`: time.monotonic() at which it was ready.
    """

    work: Work
    value: Any
    result: "Future[Any]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Places:
    """Places in the queue that a request has reserved for its images before they are decoded."""

    def __init__(self, batcher: "Batcher", number: int):
        self._batcher, self.left = batcher, number

    def put(self, work: Work, value: Any) -> "Future[Any]":
        """Puts an image in one of the places. **Returns:** its result, later."""
        job = Job(work, value)
        self._batcher._take(self, job)
        return job.result

    def release(self) -> None:
        """Gives back the places that no image took. An image that comes later is not run."""
        self._batcher._release(self)


class Batcher:
    """Runs images in batches, in a thread of its own.

    A batch has as many images as wait, up to a limit. While further images are being decoded, it waits for them, but no
    image waits longer than `max_wait` for that.

    **Arguments:**

    - `queue`: number of images that may wait, those that are being decoded included.
    - `batch_size`: images in a batch, at most.
    - `max_wait`: how long an image waits for others, in seconds, at most.
    - `observe`: called after each batch with its number of images and its seconds.
    """

    def __init__(self, queue: int, batch_size: int, max_wait: float, observe: Callable[[int, float], None]):
        self.queue, self.batch_size, self.max_wait, self._observe = queue, batch_size, max_wait, observe
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._reserved, self._is_closed = 0, False
        self._recent = 1.0  # seconds of the last batch, for Retry-After
        self._thread = threading.Thread(target=self._loop, name="inference")
        self._thread.daemon = True
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return len(self._jobs) + self._reserved

    @contextmanager
    def places(self, number: int) -> Iterator[Places]:
        """Context with places for so many images.

        **Raises:** ServiceError if the queue is full.
        """
        with self._changed:
            if self._is_closed:
                raise ServiceError("stopping", "the service is stopping", {"Retry-After": "5"})
            if self.waiting + number > self.queue:
                seconds = max(1, round(self._recent * self.queue / self.batch_size))
                raise ServiceError(
                    "busy", f"too many images wait: try again in {seconds} s", {"Retry-After": str(seconds)}
                )
            self._reserved += number
        places = Places(self, number)
        try:
            yield places
        finally:
            places.release()

    def close(self) -> None:
        """Runs what waits, and ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _take(self, places: Places, job: Job) -> None:
        with self._changed:
            if not places.left:  # its request was given up meanwhile
                job.result.cancel()
                return
            places.left -= 1
            self._reserved -= 1
            self._jobs.append(job)
            self._changed.notify_all()

    def _release(self, places: Places) -> None:
        with self._changed:
            self._reserved -= places.left
            places.left = 0
            self._changed.notify_all()

    def _loop(self) -> None:
        while batch := self._next():
            started = time.perf_counter()
            _run([job for job in batch if job.result.set_running_or_notify_cancel()])
            self._recent = time.perf_counter() - started
            self._observe(len(batch), self._recent)

    def _next(self) -> list[Job]:
        """Waits for the next batch; empty after the last one."""
        with self._changed:
            while not self._jobs:
                if self._is_closed:
                    return []
                self._changed.wait()
            work, latest = self._jobs[0].work, self._jobs[0].arrived + self.max_wait
            most = min(self.batch_size, work.largest or self.batch_size)
            while self._reserved and sum(job.work == work for job in self._jobs) < most:
                left = latest - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch = [job for job in self._jobs if job.work == work][:most]
            taken = {id(job) for job in batch}
            self._jobs = deque(job for job in self._jobs if id(job) not in taken)
            return batch


def _run(batch: list[Job]) -> None:
    """Runs a batch. If it fails, each image is run alone, so that one cannot spoil the others' results."""
    if not batch:
        return
    try:
        results = batch[0].work([job.value for job in batch])
    except Exception as error:
        if len(batch) > 1:
            log("a batch failed, so its images are run one by one", logging.WARNING, error)
            for job in batch:
                _run([job])
            return
        batch[0].result.set_exception(error)
        return
    for job, result in zip(batch, results, strict=True):
        job.result.set_result(result)
