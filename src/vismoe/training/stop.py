"""Stopping between two steps when the system or the user asks."""

import signal
import threading
from types import FrameType


class TrainingStoppedError(RuntimeError):
    """A training was asked to stop, by signal number `signal`, and has left a checkpoint."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class Stop:
    """Inside the block SIGTERM and SIGINT (Ctrl-C) only set `asked`, once: a second one acts at once, as outside."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, signal.Handlers | int | None] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # only there handlers can be set
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
