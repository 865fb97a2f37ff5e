"""Ends a training in which a process does not answer, and names the process."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch.distributed as dist

from .mesh import TIMEOUT, Mesh

ANSWER = 20.0
"""Seconds in which processes must answer when one of them has waited in vain."""


class ProcessHungError(RuntimeError):
    """A process did not answer."""


@contextmanager
def limited_patience(mesh: Mesh, seconds: float) -> Iterator[None]:
    """Context in which a process waits only for a limited time for another one in communication of any process group.

    **Arguments:**

    - `mesh`: the processes; all of them enter the context. With one process nothing is limited.
    - `seconds`: how long a process waits.

    **Raises:** ProcessHungError in the processes that waited in vain; it names those that did not answer.
    """
    if mesh.size == 1:
        yield
        return
    # Of its own, because a group in which a process waited in vain cannot be used any more.
    monitor = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    _set_patience(timedelta(seconds=seconds), monitor)
    try:
        yield
    except RuntimeError as error:
        if re.search(r"timed? ?out", str(error), re.IGNORECASE):
            raise ProcessHungError(
                f"{_silent(monitor)} did not answer for {seconds:g} seconds, so the training has ended: start it again "
                "with --resume auto, or with torchrun's --max-restarts"
            ) from error
        raise
    _set_patience(TIMEOUT, monitor)


def _set_patience(patience: timedelta, monitor: dist.ProcessGroup) -> None:
    """Sets how long processes wait in all groups except `monitor`."""
    for group in dist.distributed_c10d._world.pg_map:  # there is no public list of all groups
        if group is not monitor:
            dist.set_timeout(patience, group)


def _silent(monitor: dist.ProcessGroup) -> str:
    """Which processes do not answer, as text."""
    try:
        dist.monitored_barrier(monitor, timedelta(seconds=ANSWER), wait_all_ranks=True)
    except RuntimeError as error:
        if found := re.search(r"[Rr]anks? ([\d, ]+) failed to pass", str(error)):
            ranks = re.findall(r"\d+", found[1])
            return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(ranks)}"
        return "process 0" if monitor.rank() else "another process"
    return "a process, which answers again,"
