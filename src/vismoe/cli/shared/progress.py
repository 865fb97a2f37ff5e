"""Progress: a live display in a terminal; elsewhere a line from time to time."""

import math
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vismoe.training import Status

LEVELS = " ▁▂▃▄▅▆▇█"
TITLES = {"validation": "validation", "training": "score on the training split"}
"""What the score of the last evaluation is called, by its split."""
QUIET = 10.0
"""Seconds between two lines of `ImageProgress` outside a terminal."""


class TrainingProgress:
    """A context that shows each status of `fit`: step, loss, scores, images/s, time left, load of each expert."""

    def __init__(self, title: str, console: Console | None = None):
        self.console = console or Console()
        self.title = title
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(title, total=None, done="starting")
        self.live = Live(self.bar, console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self.printed = 0.0

    def __enter__(self) -> "TrainingProgress":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, status: Status) -> None:
        if self.live is not None:
            done = f"{status.step}/{status.steps}"
            self.bar.update(self.task, completed=status.step, total=status.steps, done=done)
            self.live.update(Group(self.bar, _figures(status)))
        elif status.step / status.steps >= self.printed + 0.1 or (status.step == status.steps > self.printed):
            self.printed = status.step / status.steps
            self._print(f"{self.title}: {_line(status)}")

    def log(self, line: str) -> None:
        """Prints a line, above the live display if there is one."""
        if self.live is not None:
            self.console.print(line, markup=False, highlight=False)
        else:
            self._print(line)

    def _print(self, line: str) -> None:
        try:
            print(line, file=self.console.file, flush=True)
        except BrokenPipeError:  # the reader has closed the pipe, as `head` does; the training continues
            self.printed = math.inf


class ImageProgress:
    """A context that shows on stderr how many of the images are done.

    **Arguments:**

    - `title`: what is being done.
    - `unit`: what is counted, in the plural; default "images".
    """

    def __init__(self, title: str, unit: str = "images"):
        self.title, self.unit, self.console = title, unit, Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self.task = self.bar.add_task(title, total=None)
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "ImageProgress":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:  # otherwise it has not started, and would print an empty line
            self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.bar.update(self.task, completed=done, total=total)
        if not self.console.is_terminal and now >= self.printed + QUIET:
            self.printed = now
            seconds_left = (total - done) * (now - self.began) / done
            print(
                f"{self.title}: {done:,} of {total:,} {self.unit}, {_clock(seconds_left)} left",
                file=self.console.file,
                flush=True,
            )


def _line(status: Status) -> str:
    accuracy = "" if status.accuracy is None else f", training accuracy {status.accuracy:.3f}"
    score = "" if status.score is None else f", {TITLES[status.score_split]} {_score(status)}"
    return (
        f"step {status.step}/{status.steps}, loss {status.loss:.3f}{accuracy}{score}, "
        f"{status.images_per_second:.0f} images/s, {_clock(status.seconds_left)} left"
        f"{_load(status)}{_exchanges(status)}"
    )


def _score(status: Status) -> str:
    """The score of the last evaluation, with its step if that is not the step of the status."""
    of_step = "" if status.score_step in (None, status.step) else f" (of step {status.score_step})"
    if status.score is None:
        return "–"
    return f"{'undefined' if math.isnan(status.score) else f'{status.score:.4f}'}{of_step}"


def _load(status: Status) -> str:
    """How uneven the experts' load is in each layer; "" without experts."""
    if not status.load:
        return ""
    ratios = ", ".join(f"{max(load) * len(load):.1f}" for load in status.load.values())
    places = ", ".join(_place(name).removeprefix("block ") for name in status.load)
    blocks = "blocks" if len(status.load) > 1 else "block"
    return f"; expert load in {blocks} {places}, largest ÷ mean (1 is even): {ratios}"


def _exchanges(status: Status) -> str:
    """How many rows the experts of each process got, and how long it exchanged; "" for one process."""
    if not status.exchanges:
        return ""
    rows = ", ".join(f"{each['rows']:,}" for each in status.exchanges)
    shares = ", ".join(f"{each['share']:.0%}" for each in status.exchanges)
    return f"; processes got {rows} rows and spent {shares} of the step in the forward exchange"


def _place(layer: str) -> str:
    return layer.removeprefix("trunk.").removesuffix(".mlp").replace("blocks.", "block ")


def _figures(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    accuracy = [] if status.accuracy is None else ["training accuracy", f"{status.accuracy:.3f}"]
    table.add_row("loss", f"{status.loss:.3f}", *accuracy, TITLES[status.score_split], _score(status))
    table.add_row("images/s", f"{status.images_per_second:.0f}", "left", _clock(status.seconds_left))
    for rank, each in enumerate(status.exchanges):
        table.add_row(f"process {rank}", f"{each['rows']:,} rows", "of the step in exchanges", f"{each['share']:.0%}")
    for name, load in status.load.items():
        # Full height is twice the mean, so an even load is a row of bars of half height.
        bars = "".join(LEVELS[min(8, round(share * len(load) * 4))] for share in load)
        ratio = f"{max(load) * len(load):.1f}"
        table.add_row(_place(name), bars, "expert load, largest ÷ mean", ratio)
    return table


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
