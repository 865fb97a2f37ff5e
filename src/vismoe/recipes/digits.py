"""Handwritten digits: the smallest real set, trained on in a minute."""

from vismoe.training import Recipe


def digits() -> Recipe:
    """A 64-wide V-MoE, 8 experts in every second block, on scikit-learn's 1,797 handwritten digits of 8 × 8."""
    return Recipe(name="digits", model="vmoe_pico_patch2_8_every2_e8")


def digits_dense() -> Recipe:
    """Its dense twin: the same trunk, initial weights and recipe, no experts."""
    return Recipe(name="digits_dense", model="vmoe_pico_patch2_8_dense")
