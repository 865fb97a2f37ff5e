"""What SIGTERM and SIGINT (Ctrl-C) do while a training runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]
STOPS = (signal.SIGTERM, signal.SIGINT)


def signal_name(number: int) -> str:
    """The name of a signal for messages; for SIGINT it starts with "Ctrl-C"."""
    name = signal.Signals(number).name
    return f"Ctrl-C, {name}" if number == signal.SIGINT else name


class Stop:
    """Context manager that delays SIGTERM and SIGINT (Ctrl-C).

    Inside the block the first of them only sets `requested` to its number, so that the training can stop after the
    current step. The second one has its usual effect.

    **Arguments:**

    - `log`: called with a line of text if a signal stops nothing, see `finish`.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.requested: int | None = None
        self._log, self._rest = log, ""
        self._handlers: dict[int, signal.Handlers | int | None] = {}

    def finish(self, rest: str) -> None:
        """From here on the first signal stops nothing. It is answered by a line with its name and `rest`, a text about
        what is done before the block ends. A signal that came before is answered now."""
        self._rest = rest
        if self.requested is not None:
            self._answer(self.requested)

    def _answer(self, number: int) -> None:
        self._log(f"{signal_name(number)}: {self._rest}")

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()
        if self._rest:
            self._answer(number)

    def _restore(self) -> None:
        _restore(self._handlers)
        self._handlers = {}

    def __enter__(self) -> "Stop":
        self._handlers = _replace(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()


@contextmanager
def raising(error: Callable[[int], BaseException]) -> Iterator[None]:
    """Context manager in which SIGTERM and SIGINT (Ctrl-C) raise an error at once.

    **Arguments:**

    - `error`: function that makes the error of the number of a signal.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise error(number)

    handlers = _replace(stop)
    try:
        yield
    finally:
        _restore(handlers)


def _replace(handler: Handler) -> dict[int, signal.Handlers | int | None]:
    """Sets a handler of both signals. Returns those before; none are set, and {} is returned, outside of the main
    thread, where handlers cannot be set."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in STOPS}  # type: ignore[misc]


def _restore(handlers: dict[int, signal.Handlers | int | None]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
