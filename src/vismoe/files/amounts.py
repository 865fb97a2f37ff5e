"""Amounts of memory as text."""

import re

UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}


def parse_bytes(amount: int | str, name: str) -> int:
    """An amount of memory in bytes.

    **Arguments:**

    - `amount`: bytes, or a number with a unit, such as "8GiB" or "500 MB".
    - `name`: the argument's name in error messages.

    **Raises:** ValueError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?((?:[KMGT]i?)?B)?", str(amount))
    number = float(match[1]) * UNITS[match[2] or "B"] if match else 0
    if number < 1:
        accepted = f"a number of bytes, or a number with a unit ({', '.join(UNITS)}), such as 8GiB"
        raise ValueError(f"{name}={amount!r}: accepted are {accepted}")
    return int(number)


def as_text(amount: float) -> str:
    """Formats an amount of memory in the largest binary unit in which it is at least 1, such as "1.50 GiB"."""
    unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if amount >= UNITS[unit]), "B")
    return f"{amount / UNITS[unit]:,.{0 if unit == 'B' else 2}f} {unit}"
