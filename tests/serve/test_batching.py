"""pytest tests/serve/test_batching.py: a bounded queue, batches as large as what waits, no image that spoils others."""

import threading
import time
from dataclasses import dataclass, field

import pytest

from vismoe.serve.batching import Batcher
from vismoe.serve.requests.errors import ServiceError


@dataclass(eq=False)
class Squares:
    """A work that takes until `may_run` is set, and keeps its batches."""

    largest: int | None = None
    batches: list[list[int]] = field(default_factory=list)
    may_run: threading.Event = field(default_factory=threading.Event)

    def __call__(self, values):
        assert self.may_run.wait(10)
        self.batches.append(list(values))
        if -1 in values:
            raise ValueError("no square")
        return [value**2 for value in values]


@pytest.fixture
def batcher():
    made = Batcher(queue=8, batch_size=4, max_wait=0.05, observe=lambda images, seconds: None)
    yield made
    made.close()


def test_what_waits_shares_batches(batcher):
    """While one batch runs, others wait, and the next batches have as many as there are, up to the limit."""
    work = Squares()
    with batcher.places(1) as places:
        first = places.put(work, 1)
    wait_until(lambda: batcher.waiting == 0)
    with batcher.places(6) as places:
        results = [places.put(work, value) for value in range(2, 8)]
    work.may_run.set()
    assert [each.result(10) for each in [first, *results]] == [1, 4, 9, 16, 25, 36, 49]
    assert work.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_works_are_not_mixed(batcher):
    """Images of another model, or with another capacity, are in batches of their own; a work may have its own limit."""
    one, other = Squares(), Squares(largest=1)
    blocked = Squares()
    with batcher.places(5) as places:
        places.put(blocked, 0)
        wait_until(lambda: batcher.waiting == 4)
        results = [places.put(work, value) for value, work in ((1, one), (2, other), (3, one), (4, other))]
    for work in (one, other, blocked):
        work.may_run.set()
    assert [each.result(10) for each in results] == [1, 4, 9, 16]
    assert (one.batches, other.batches) == ([[1, 3]], [[2], [4]])


def test_a_full_queue_refuses(batcher):
    """Nine images do not wait where there are eight places; places that are given back are free again."""
    work = Squares()
    with batcher.places(8), pytest.raises(ServiceError) as caught, batcher.places(1):
        pass
    assert (caught.value.code, caught.value.status) == ("busy", 503)
    assert int(caught.value.headers["Retry-After"]) >= 1
    work.may_run.set()
    with batcher.places(8) as places:
        assert places.put(work, 3).result(10) == 9
    assert batcher.waiting == 0


def test_it_waits_for_images_that_are_being_decoded_but_not_long(batcher):
    """The second image comes within the 50 ms; the third one does not."""
    work = Squares()
    work.may_run.set()
    with batcher.places(3) as places:
        results = [places.put(work, 1)]
        time.sleep(0.01)
        results.append(places.put(work, 2))
        assert [each.result(10) for each in results] == [1, 4]
    assert work.batches == [[1, 2]]
    started = time.perf_counter()
    with batcher.places(1) as places:
        places.put(work, 5).result(10)
    assert time.perf_counter() - started < 0.04  # nobody else is there: it does not wait


def test_an_image_that_fails_fails_alone(batcher):
    """The others of its batch are run again, and the thread lives on."""
    work = Squares()
    with batcher.places(3) as places:
        results = [places.put(work, value) for value in (2, -1, 3)]
    work.may_run.set()
    assert (results[0].result(10), results[2].result(10)) == (4, 9)
    with pytest.raises(ValueError, match="no square"):
        results[1].result(10)


def test_what_was_given_up_is_not_run(batcher):
    """A request that is cancelled while it waits costs nothing, nor does one whose image is decoded too late."""
    work, blocked = Squares(), Squares()
    with batcher.places(3) as places:
        places.put(blocked, 0)
        wait_until(lambda: batcher.waiting == 2)
        cancelled = places.put(work, 1)
        cancelled.cancel()
    assert places.put(work, 2).cancelled()
    blocked.may_run.set()
    work.may_run.set()
    with batcher.places(1) as places:
        assert places.put(work, 3).result(10) == 9
    assert work.batches == [[3]]


def test_closing_finishes_what_waits():
    """And refuses what comes afterwards."""
    batcher = Batcher(queue=8, batch_size=2, max_wait=0.0, observe=lambda images, seconds: None)
    work = Squares()
    with batcher.places(3) as places:
        results = [places.put(work, value) for value in range(3)]
    work.may_run.set()
    batcher.close()
    assert [each.result(0) for each in results] == [0, 1, 4]
    with pytest.raises(ServiceError, match="stopping"), batcher.places(1):
        pass


def wait_until(is_so):
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)
