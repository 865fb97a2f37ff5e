"""A function in two processes, for what is trained side by side."""

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing


def in_two_processes(work: Callable[..., None], *arguments: str) -> None:
    """`work(rank, *arguments)` at ranks 0 and 1, each in a fork of a process that has imported vismoe.

    **Raises:** torch.multiprocessing.ProcessRaisedException where one of them did.
    """
    multiprocessing.set_forkserver_preload(["vismoe.training", "sklearn.datasets"])
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")
