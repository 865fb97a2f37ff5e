"""Arrays that are made once."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What a .npy file has, not read yet; made where it is not there."""
    if not path.exists():
        aside = path.with_name(f".{path.stem}-{os.getpid()}.npy")
        np.save(aside, make())
        os.replace(aside, path)
    return np.load(path, mmap_mode="r")
