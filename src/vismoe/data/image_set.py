"""Sets of images, whatever they come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from .images import Unreadable

Sample = dict[str, Any]
"""Named values of one image, or of what else is trained on: "image" (a PIL image or `tv_tensors.Image`), "label" (a
tensor), and further ones: boxes, masks, a second image, a target."""
Batch = dict[str, Any]
"""The same names, with what samples have of them stacked, or in a list."""


@dataclass(frozen=True)
class ImageSet:
    """N images and what is known of them. It can be pickled if its functions can: where processes are not forked, those
    that prepare images are sent it.

    - `labels`: the number of each one's class (N,), or which of K classes are on each (N, K), with K = 0 no labels.
    - `image`: gives the i-th as a PIL image; nothing is decoded before.
    - `files`: of files, their paths below the set's folder.
    - `columns`: by name, what the set's metadata says of each beside the labels.
    - `further`: by name, what gives a further value of the i-th sample: boxes or masks as `tv_tensors`, so that they
      move with the image, a second image, any tensor. One named "image" takes the image's place.
    """

    labels: Int[Tensor, " N"] | Bool[Tensor, "N K"]
    image: Callable[[int], Image.Image]
    files: Sequence[str] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    further: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int) -> Sample:
        """The i-th image with all that belongs to it: "image", "label" (where there are labels), and further values."""
        sample: Sample = {} if "image" in self.further else {"image": self.image(index)}
        if self.labels.ndim == 1 or self.labels.shape[1]:
            sample["label"] = self.labels[index]
        return sample | {name: value(index) for name, value in self.further.items()}

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """Some of the images, in the order given."""
        return ImageSet(
            self.labels[list(indices)],
            partial(_chosen, self.image, indices),
            [self.files[index] for index in indices] if self.files else (),
            {name: [values[index] for index in indices] for name, values in self.columns.items()},
            {name: partial(_chosen, value, indices) for name, value in self.further.items()},
        )


def _chosen(value: Callable[[int], Any], indices: Sequence[int], index: int) -> Any:
    return value(indices[index])


@dataclass(frozen=True)
class Data:
    """A set.

    - `name`: what it was opened by.
    - `classes`: their names, in order.
    - `train`: the part to train on; None where all is for evaluation.
    - `val`: the part to evaluate on.
    - `channels`: of its images: 1 where all are grey.
    - `left_out`: files that are no part of it, and why.
    - `unreadable`: files of the parts that cannot be decoded; None where nobody has tried.
    - `moved`: of a folder that was split at random, the files that changed sides after each class was drawn from, so
      that copies of an image are on one side: with them the split can be had again without a look at the images; None
      for other sets.
    """

    name: str
    classes: list[str]
    train: ImageSet | None
    val: ImageSet
    channels: int = 3
    left_out: tuple[Unreadable, ...] = ()
    unreadable: tuple[Unreadable, ...] | None = None
    moved: tuple[str, ...] | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, or none."""
        return self.val.labels.ndim == 2

    @property
    def parts(self) -> list[ImageSet]:
        return [part for part in (self.train, self.val) if part is not None]

    def classes_without(self, images: ImageSet) -> list[str]:
        """The classes that none of these images shows."""
        labels = images.labels
        seen = labels.any(0) if labels.ndim == 2 else labels.bincount(minlength=len(self.classes)) > 0
        return [name for name, shown in zip(self.classes, seen.tolist(), strict=True) if not shown]

    def class_weights(self, power: float) -> Tensor | None:
        """What each class counts for in training: (mean size ÷ its size) to a power, or, where an image may show
        several, (images without ÷ images with it) to it; None for a power of 0."""
        if not power:
            return None
        labels = self.parts[0].labels
        sizes = labels.sum(0) if self.multi_label else labels.bincount(minlength=len(self.classes))
        others = len(labels) - sizes if self.multi_label else sizes.double().mean()
        return (others / sizes.clamp_min(1)).pow(power).float()

    def numbered_as(self, classes: Sequence[str]) -> "Data":
        """The same set with the classes of a network, in its order; the set may lack some.

        **Raises:** ValueError for a class that the network does not know.
        """
        if unknown := sorted(set(self.classes) - set(classes)):
            known = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise ValueError(
                f"{self.name} has classes that the model does not know: {', '.join(unknown)} ({known} it does)"
            )
        number = torch.tensor([list(classes).index(name) for name in self.classes])

        def renumbered(part: ImageSet) -> ImageSet:
            if not self.multi_label:
                return replace(part, labels=number[part.labels])
            labels = torch.zeros(len(part), len(classes), dtype=torch.bool)
            labels[:, number] = part.labels
            return replace(part, labels=labels)

        train = None if self.train is None else renumbered(self.train)
        return replace(self, classes=list(classes), train=train, val=renumbered(self.val))
