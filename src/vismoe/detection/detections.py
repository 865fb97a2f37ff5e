"""The objects that a detector finds in one image."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

PROBLEM_TYPE = "object-detection"
"""The `problem_type` of detectors in model folders and exported files."""


@dataclass(frozen=True)
class Detections:
    """The M objects found in one image, by descending score.

    - `boxes`: (M, 4), left, top, right, bottom in pixels.
    - `scores`: (M,), confidence of each box, 0 to 1.
    - `labels`: (M,), class number of each box.
    - `size`: height and width of the image in pixels; default None: unknown.
    """

    boxes: Float[Tensor, "M 4"]
    scores: Float[Tensor, " M"]
    labels: Int[Tensor, " M"]
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """The objects with at least this score."""
        kept = self.scores >= score
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], self.size)

    def on(self, change: Callable[[Tensor], Tensor]) -> "Detections":
        """The same objects with every tensor changed by a function, for example moved to another device."""
        return Detections(change(self.boxes), change(self.scores), change(self.labels), self.size)
