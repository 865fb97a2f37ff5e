"""Makes figures, and writes them to files. matplotlib is imported when the first is made: it takes most of a second."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float | int, height: float | int) -> "Figure":
    """An empty figure whose parts make room for each other.

    **Arguments:** `width`, `height`: in inches.
    """
    from matplotlib.figure import Figure

    options: dict[str, Any] = {"figsize": (width, height), "layout": "constrained"}
    return Figure(**options)


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Writes a figure. Characters that no installed font has become boxes, without a warning."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(path, dpi=dpi)


def plain_text(name: str) -> str:
    """A name as one line of text, with its dollar signs escaped: they would begin a formula."""
    return " ".join(name.split()).replace("$", r"\$")
