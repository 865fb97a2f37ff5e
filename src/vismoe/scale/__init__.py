"""What it takes to train a network on many devices."""

from .estimate import Estimate, Layout, Memory, Traffic, estimate

__all__ = ["Estimate", "Layout", "Memory", "Traffic", "estimate"]
