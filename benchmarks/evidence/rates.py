"""Which learning rates are tried, in both arms, and which one the first arm takes by them."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def outwards(rates: Sequence[float], loss: Callable[[float], float | None]) -> list[float]:
    """`rates`, in ascending order, and rates beyond them by factors of two as long as the last one has the least loss.
    None: the loss is not known yet, and what follows from it neither."""
    tried = list(rates)
    while None not in (losses := [loss(rate) for rate in tried]):
        best = min(zip(losses, tried, strict=True))[1]
        if best == tried[0]:
            tried.insert(0, best / 2)
        elif best == tried[-1]:
            tried.append(best * 2)
        else:
            break
    return tried


def lowest(losses: Mapping[float, float]) -> float:
    """Where a parabola over the logarithm of the rate, through the rate of the least loss and its two neighbours, has
    its lowest point; to two digits. Rates are some way apart, and networks are not to differ by how near one of them
    happens to be to their best.

    **Raises:** ValueError where the least loss is at either end.
    """
    rates = sorted(losses)
    middle = rates.index(min(rates, key=losses.__getitem__))
    if not 0 < middle < len(rates) - 1:
        raise ValueError(f"the best rate, {rates[middle]:g}, is the last one tried")
    three = rates[middle - 1 : middle + 2]
    square, linear, _ = np.polyfit([math.log(rate / three[1]) for rate in three], [losses[rate] for rate in three], 2)
    return float(f"{three[1] * math.exp(-linear / (2 * square)):.2g}")
