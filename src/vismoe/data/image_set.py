"""Sets of images from any source."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vismoe.files.renamed import renamed_method, renamed_property

from .images import Unreadable

Sample = dict[str, Any]
"""The named values of one sample: "image" (a PIL image or `tv_tensors.Image`), "label" (a tensor), and further ones:
boxes, masks, a second image, a target."""
Batch = dict[str, Any]
"""The same names, with the values of all samples stacked, or in a list."""


@dataclass(frozen=True)
class ImageSet:
    """N images with their labels and further values. It can be pickled if its functions can, as data workers that are
    not forked need it.

    - `labels`: class numbers (N,), or which of K classes each image shows (N, K); with K = 0 there are no labels.
    - `image`: decodes the i-th image, as a PIL image.
    - `files`: paths of the image files below the set's folder; empty for a set that is not made of files.
    - `columns`: by name, the other columns of the set's metadata, a value for each image.
    - `further`: by name, a function that gives a further value of the i-th sample: boxes or masks as `tv_tensors`, so
      that they move with the image, a second image, any tensor. One named "image" replaces the image.
    """

    labels: Int[Tensor, " N"] | Bool[Tensor, "N K"]
    image: Callable[[int], Image.Image]
    files: Sequence[str] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    further: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int) -> Sample:
        """The i-th sample: "image", "label" (where there are labels), and further values."""
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

    def joined(self, other: "ImageSet") -> "ImageSet":
        """These images, and after them those of another set of the same classes. Only the columns and further values
        that both sets have are kept."""
        return ImageSet(
            torch.cat([self.labels, other.labels]),
            partial(_of_two, self.image, other.image, len(self)),
            [*self.files, *other.files] if self.files and other.files else (),
            {name: [*values, *other.columns[name]] for name, values in self.columns.items() if name in other.columns},
            {
                name: partial(_of_two, value, other.further[name], len(self))
                for name, value in self.further.items()
                if name in other.further
            },
        )


def _chosen(value: Callable[[int], Any], indices: Sequence[int], index: int) -> Any:
    return value(indices[index])


def _of_two(first: Callable[[int], Any], second: Callable[[int], Any], border: int, index: int) -> Any:
    return first(index) if index < border else second(index - border)


@dataclass(frozen=True)
class Data:
    """A set.

    - `name`: the name or path that it was opened by.
    - `classes`: their names, in order.
    - `train`: the training split; None where all images are for evaluation.
    - `val`: the split to evaluate on.
    - `channels`: channels of its images: 1 where all are grey.
    - `left_out`: files that are left out, and why.
    - `unreadable`: files of the splits that cannot be decoded; None where they have not been tried.
    - `moved`: for a folder that was split at random, the files that changed sides after the draw, so that copies of an
      image are on one side; with them the split is reproducible without decoding. None for other sets.
    - `test`: the test split, where a set has one beside `val`; nothing is chosen by it.
    - `notes`: what a user should know of the set: folders that are not read, labels that may be misread.
    - `val_is_test`: whether `val` is a test split, beside which the set has a validation split (see `for_testing`).
    - `typical_size`: median width and height of its images in pixels; None where they have not been decoded.
    - `group_column`: the column of the set's metadata whose values are groups of images (of one patient, video, …) that
      stay on one side of a split; None: none.
    - `largest_level`: the largest level of its images of 16 bits of grey; 0 where there are none, or none was decoded.
    """

    name: str
    classes: list[str]
    train: ImageSet | None
    val: ImageSet
    channels: int = 3
    left_out: tuple[Unreadable, ...] = ()
    unreadable: tuple[Unreadable, ...] | None = None
    moved: tuple[str, ...] | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    val_is_test: bool = False
    typical_size: tuple[int, int] | None = None
    group_column: str | None = None
    largest_level: int = 0

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, or none."""
        return self.val.labels.ndim == 2

    @property
    def train_and_val(self) -> list[ImageSet]:
        """`train`, where there is one, and `val`."""
        return [part for part in (self.train, self.val) if part is not None]

    parts = renamed_property("parts", "train_and_val")

    @property
    def for_testing(self) -> "Data":
        """The set as it is tested on: of one with a test split that is `val`, and `train` is all the rest. Others are
        unchanged."""
        if self.test is None or self.train is None:
            return self
        return replace(self, train=self.train.joined(self.val), val=self.test, test=None, val_is_test=True)

    def classes_without(self, images: ImageSet) -> list[str]:
        """The classes that none of these images shows."""
        labels = images.labels
        is_shown = labels.any(0) if labels.ndim == 2 else labels.bincount(minlength=len(self.classes)) > 0
        return [name for name, shown in zip(self.classes, is_shown.tolist(), strict=True) if not shown]

    def check_classes(self, images: ImageSet, reason: str) -> None:
        """Raises ValueError where none of these images shows some class: the set's name, `reason`, and the classes."""
        if missing := self.classes_without(images):
            raise ValueError(f"{self.name}: {reason} {', '.join(missing)}")

    def class_weights(self, power: float) -> Tensor | None:
        """The weight of each class in the loss: (mean class size ÷ its size) to a power, or, where an image may show
        several, (images without the class ÷ images with it) to the power; None for a power of 0."""
        if not power:
            return None
        labels = self.train_and_val[0].labels
        sizes = labels.sum(0) if self.multi_label else labels.bincount(minlength=len(self.classes))
        others = len(labels) - sizes if self.multi_label else sizes.double().mean()
        return (others / sizes.clamp_min(1)).pow(power).float()

    def align_classes(self, classes: Sequence[str]) -> "Data":
        """The same set with the classes of a network, in the network's order; the set may lack some.

        **Raises:** ValueError for a class that the network does not know.
        """
        if unknown := sorted(set(self.classes) - set(classes)):
            known = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise ValueError(
                f"{self.name} has classes that the model does not know: {', '.join(unknown)} ({known} it does)"
            )
        new_numbers = torch.tensor([list(classes).index(name) for name in self.classes])

        def renumbered(part: ImageSet) -> ImageSet:
            if not self.multi_label:
                return replace(part, labels=new_numbers[part.labels])
            labels = torch.zeros(len(part), len(classes), dtype=torch.bool)
            labels[:, new_numbers] = part.labels
            return replace(part, labels=labels)

        train, test = (None if part is None else renumbered(part) for part in (self.train, self.test))
        return replace(self, classes=list(classes), train=train, val=renumbered(self.val), test=test)

    numbered_as = renamed_method("numbered_as", "align_classes")
