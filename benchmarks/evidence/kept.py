"""Arrays that are made once: whole, or not there."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What a .npy file has, not read yet; made where it is not there."""
    if not path.exists():
        aside = path.with_name(f".{path.stem}-{os.getpid()}.npy")
        try:
            np.save(aside, make())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and it is made anew") from error
