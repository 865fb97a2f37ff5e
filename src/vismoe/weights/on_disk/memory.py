"""The memory that this process has."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """The memory of this process, in bytes: anonymous memory and the resident part of mapped files.

    **Raises:** ValueError on a system without /proc.
    """
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that this process has had, in bytes, as `resident_bytes` counts it."""
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"max_memory needs {STATUS}, which only Linux has: leave it out") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
