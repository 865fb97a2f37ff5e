"""The experts of the patches in each found box."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from vismoe.tasks.detection import BoxPrediction, FoundBox

from ..trace import ImageTrace


@dataclass(frozen=True)
class BoxExperts:
    """Which experts the patches of a box went to.

    - `box`: the found object.
    - `patches`: number of patches whose centre is in the box; of a smaller box, the one patch around its centre.
    - `experts`: for each sparse layer, number of choices of each expert among these patches.
    """

    box: FoundBox
    patches: int
    experts: dict[str, Int[Tensor, " E"]]


def experts_of_boxes(trace: ImageTrace, min_score: float | int = 0.3) -> list[BoxExperts]:
    """The experts of each found box of a detector.

    **Arguments:**

    - `trace`: the trace of an image.
    - `min_score`: least score of an object; default 0.3.

    **Raises:** ValueError for the trace of a network that finds no boxes.
    """
    if not isinstance(trace.prediction, BoxPrediction):
        raise ValueError("this model finds no boxes: expected the trace of a detector")
    vertical, horizontal = trace.sample["scale"].tolist()
    found = []
    for each in trace.prediction.above(min_score).boxes:
        left, top, right, bottom = (
            side * scale for side, scale in zip(each.box, (horizontal, vertical) * 2, strict=True)
        )
        experts, patches = {}, 0
        for layer in trace.layers:
            rows, columns = layer.grid
            row = (torch.arange(rows) + 0.5) * trace.image.height / rows
            column = (torch.arange(columns) + 0.5) * trace.image.width / columns
            inside = ((row >= top) & (row <= bottom))[:, None] & (column >= left) & (column <= right)
            if not inside.any():
                nearest = (row - (top + bottom) / 2).abs().argmin(), (column - (left + right) / 2).abs().argmin()
                inside[nearest] = True
            chosen = layer.expert[layer.prefix :][inside.flatten()]
            experts[layer.name] = torch.bincount(chosen.flatten() + 1, minlength=layer.num_experts + 1)[1:]
            patches = int(inside.sum())
        found.append(BoxExperts(each, patches, experts))
    return found
