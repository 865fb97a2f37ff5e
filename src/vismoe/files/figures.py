"""Figures as files."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a figure. Signs of a name that no font here has are boxes, without a word."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(path, dpi=dpi)


def plain_text(name: str) -> str:
    """A name as one line of text: a dollar sign would begin a formula."""
    return " ".join(name.split()).replace("$", r"\$")
