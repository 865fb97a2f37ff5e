"""What memory a piece of code takes, in a process of its own."""

import subprocess

from . import forks

PEAK = """
import ctypes, re, resource, sys
from pathlib import Path

def peak():
    if sys.platform == "linux":  # there ru_maxrss begins with that of the process that started this one
        return int(re.search("VmHWM:(.*)kB", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def return_freed():
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        assert ctypes.CDLL(None).mallopt(-3, 1 << 20) == 1  # M_MMAP_THRESHOLD: from 1 MB on
"""


def printed(script: str, *arguments: str) -> list[int]:
    """The numbers that a script prints. In it `peak()` is the most memory that its process has had, in bytes: what it
    was forked with counts too, so a script prints how much more it became. After `return_freed()` glibc returns each
    freed array at once, where it would keep up to 64 MB, more or less by chance."""
    command = [forks.command(), "-c", PEAK + script, *arguments]
    return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]
