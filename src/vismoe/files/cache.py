"""The cache folder, with downloaded, unpacked and converted files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder: $XDG_CACHE_HOME/vismoe, or ~/.cache/vismoe."""
    variable = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(variable) if os.path.isabs(variable) else Path.home() / ".cache") / "vismoe"
