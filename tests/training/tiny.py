"""Recipes of a few steps, for tests of everything around a training."""

from vismoe.training import Recipe


def tiny(**changes) -> Recipe:
    """Four steps of the digits recipe, eight images each, on the CPU."""
    return Recipe(**{"steps": 4, "batch_size": 8, "warmup_steps": 1, "device": "cpu"} | changes)
