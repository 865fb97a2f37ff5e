"""Writes figures to files."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a figure. Characters that no installed font has become boxes, without a warning."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(path, dpi=dpi)


def plain_text(name: str) -> str:
    """A name as one line of text, with its dollar signs escaped: they would begin a formula."""
    return " ".join(name.split()).replace("$", r"\$")
