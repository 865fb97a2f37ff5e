"""Handwritten digits: the smallest real data set; training takes a minute."""

from vismoe.training import Recipe


def digits() -> Recipe:
    """A V-MoE of width 64 with 8 experts in every second block, on scikit-learn's 1,797 handwritten digits of 8 × 8."""
    return Recipe(name="digits", model="vmoe_pico_patch2_8_every2_e8")


def digits_dense() -> Recipe:
    """The dense twin of digits: the same trunk, initial weights and recipe, without experts."""
    return Recipe(name="digits_dense", model="vmoe_pico_patch2_8_dense")
