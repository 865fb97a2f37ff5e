"""Checks values of JSON files."""

import json
import sys
from typing import Any, TypeGuard


def four_numbers(place: str, box: Any) -> tuple[float, float, float, float]:
    """The numbers of a box [x, y, width, height].

    **Arguments:**

    - `place`: where it is written, for the error message.
    - `box`: the value.

    **Raises:** ValueError if it is not a list of four finite numbers.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(
            f"{place}: expected four finite numbers [x, y, width, height], found {shown(box)}: correct or remove the "
            "box"
        )
    left, top, width, height = map(float, box)
    return left, top, width, height


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number, which a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def is_length(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number of pixels above 0."""
    return is_number(value) and value > 0 and int(value) == value


def shown(value: Any) -> str:
    """A value as JSON, shortened, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
