"""Returns free memory to the operating system."""

import ctypes
import sys


def return_memory() -> None:
    """Has the C library return the memory that is free. glibc keeps what large images took, for each thread that
    decoded some: gigabytes in a service that runs for weeks. Elsewhere it does nothing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
