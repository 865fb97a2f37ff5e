"""File names as text."""

import os


def readable(name: str) -> str:
    r"""A file name or path as valid text: bytes that are not UTF-8 become `\xNN`; other names are unchanged.

    On POSIX, a file name can have any bytes. Python represents bytes that are not UTF-8 by lone surrogates, which are
    invalid in UTF-8 and in JSON.
    """
    return os.fsencode(name).decode(errors="backslashreplace")
