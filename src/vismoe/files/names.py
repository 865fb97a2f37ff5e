"""Names of files as text."""

import os


def readable(name: str) -> str:
    r"""A file's name or path as text that every program can read: bytes that are not UTF-8 become `\xNN`.

    On POSIX a name is any bytes. Python shows those that are not UTF-8 as lone surrogates, which are valid in neither
    UTF-8 nor JSON. Other names are unchanged.
    """
    return os.fsencode(name).decode(errors="backslashreplace")
