"""Creates and saves figures. matplotlib is imported only for the first figure, because that takes almost a second."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float | int, height: float | int) -> "Figure":
    """Creates an empty figure with constrained layout, so its axes and labels do not overlap.

    **Arguments:**

    - `width`, `height`: in inches.
    """
    from matplotlib.figure import Figure

    options: dict[str, Any] = {"figsize": (width, height), "layout": "constrained"}
    return Figure(**options)


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Writes a figure to a file. Characters missing in all installed fonts become boxes, without a warning."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(path, dpi=dpi)


def plain_text(name: str) -> str:
    """A name as one line of text. Dollar signs are escaped, because matplotlib reads text between them as a formula."""
    return " ".join(name.split()).replace("$", r"\$")
