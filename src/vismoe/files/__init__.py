"""Files: written whole or not at all, checked by their sums, cached, downloaded."""

from .hub import download

__all__ = ["download"]
