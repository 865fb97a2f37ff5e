"""Which learning rates are tried, of the networks of both arms."""

from collections.abc import Callable, Sequence


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
