"""Handwritten digits: a small data set; training takes a minute."""

from vismoe.training import Recipe


def digits() -> Recipe:
    """A V-MoE of width 64 with 8 experts in every second block, for scikit-learn's digits (8 × 8 pixels)."""
    return Recipe(name="digits", model="vmoe_pico_patch2_8_every2_e8")


def digits_dense() -> Recipe:
    """The dense twin of digits: the same network without experts, with the same initial weights and recipe."""
    return Recipe(name="digits_dense", model="vmoe_pico_patch2_8_dense")
