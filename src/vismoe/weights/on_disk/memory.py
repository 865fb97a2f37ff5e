"""Amounts of memory: as text, and what this process has."""

import re
from pathlib import Path

UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
STATUS = Path("/proc/self/status")


def parse_bytes(amount: int | str) -> int:
    """An amount of memory in bytes.

    **Arguments:** `amount`: bytes, or a number with a unit, such as "8GiB" or "500 MB".

    **Raises:** ValueError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?((?:[KMGT]i?)?B)?", str(amount))
    number = float(match[1]) * UNITS[match[2] or "B"] if match else 0
    if number < 1:
        raise ValueError(
            f"max_memory={amount!r}: accepted are a number of bytes, or a number with a unit ({', '.join(UNITS)}), "
            "such as 8GiB"
        )
    return int(number)


def as_text(amount: float) -> str:
    """An amount of memory in GiB, or in MiB if it is less than one GiB."""
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"


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
