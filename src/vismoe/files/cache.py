"""Where what was downloaded, unpacked or converted once is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/vismoe, or ~/.cache/vismoe."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "vismoe"
