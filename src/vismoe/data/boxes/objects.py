"""The objects of many images as tensors, and the values of a sample that they become."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision import tv_tensors


@dataclass(frozen=True)
class Objects:
    """The M objects of N images.

    - `sizes`: (N, 2), height and width of each image in pixels.
    - `starts`: (N + 1,), the number of the first object of each image, and M.
    - `corners`: (M, 4), left, top, right, bottom in pixels.
    - `classes`: (M,), class numbers.
    - `ignored`: (M,), whether an object is a crowd or difficult.
    """

    sizes: Int[Tensor, "N 2"]
    starts: Int[Tensor, " N+1"]
    corners: Float[Tensor, "M 4"]
    classes: Int[Tensor, " M"]
    ignored: Bool[Tensor, " M"]

    @staticmethod
    def of(
        sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[tuple[int, tuple[float, ...], bool]]]
    ) -> "Objects":
        """Made from the sizes (height, width) of images, and the class, corners and `ignored` of their objects."""
        flat = [each for of_image in objects for each in of_image]
        lengths = torch.tensor([0, *map(len, objects)])
        return Objects(
            torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            lengths.cumsum(0),
            torch.tensor([corners for _, corners, _ in flat], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([number for number, _, _ in flat], dtype=torch.int64),
            torch.tensor([ignored for _, _, ignored in flat], dtype=torch.bool),
        )

    def labels(self, classes: int) -> Bool[Tensor, "N K"]:
        """Which classes each image shows, without ignored objects."""
        labels = torch.zeros(len(self.sizes), classes, dtype=torch.bool)
        images = torch.repeat_interleave(torch.arange(len(self.sizes)), self.starts.diff())
        labels[images[~self.ignored], self.classes[~self.ignored]] = True
        return labels

    def further(self) -> Mapping[str, Callable[[int], Any]]:
        """The functions for `ImageSet.further`."""
        return {"boxes": self.boxes_of, "classes": self.classes_of, "ignored": self.ignored_of}

    def _of(self, values: Tensor, index: int) -> Tensor:
        # A copy, because transforms may change a sample in place.
        return values[self.starts[index] : self.starts[index + 1]].clone()

    def boxes_of(self, index: int) -> tv_tensors.BoundingBoxes:
        """The boxes of an image, (n, 4)."""
        height, width = self.sizes[index].tolist()
        return tv_tensors.BoundingBoxes(self._of(self.corners, index), format="XYXY", canvas_size=(height, width))

    def classes_of(self, index: int) -> Int[Tensor, " n"]:
        """The class numbers of the objects of an image."""
        return self._of(self.classes, index)

    def ignored_of(self, index: int) -> Bool[Tensor, " n"]:
        """Whether each object of an image is ignored."""
        return self._of(self.ignored, index)
