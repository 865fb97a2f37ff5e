"""File names and numbers as text."""

import os


def readable(name: str) -> str:
    r"""A file name or path as valid text: bytes that are not UTF-8 become `\xNN`; other names are unchanged.

    On POSIX, a file name can have any bytes. Python represents bytes that are not UTF-8 by lone surrogates, which are
    invalid in UTF-8 and in JSON.
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, such as "1 image" and "1,234 images". `plural`: the noun's plural; default: with an s."""
    return f"1 {noun}" if number == 1 else f"{number:,} {plural or f'{noun}s'}"
