"""Data sets: images with labels, in training, validation and test splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from vismoe.files.renamed import renamed_method, renamed_property

from .images import Unreadable, eight_bits

Sample = dict[str, Any]
"""The values of one sample by name: "image" (a PIL image or `tv_tensors.Image`), "label" (a tensor), and others, such
as boxes, masks, or a second image."""
Batch = dict[str, Any]
"""The values of several samples by the same names, stacked into a tensor or collected in a list."""


@dataclass(frozen=True)
class ImageSet:
    """N images with their labels and other values. It can be pickled if its functions can; data workers that are
    spawned, not forked, need that.

    - `labels`: class numbers (N,), or which of K classes each image shows (N, K); K = 0: no labels.
    - `image`: function that decodes the i-th image and returns a PIL image.
    - `files`: (N,), paths of the image files, relative to the folder of the data set; empty if there are no files.
    - `columns`: for each other column of the metadata, its (N,) values.
    - `further`: additional values by name, each a function of the index: boxes or masks as `tv_tensors`, which are
      transformed with the image; a second image; any tensor. A value named "image" replaces the image.
    """

    labels: Int[Tensor, " N"] | Bool[Tensor, "N K"]
    image: Callable[[int], Image.Image]
    files: Sequence[str] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    further: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int) -> Sample:
        """The i-th sample: "image", "label" (if there are labels), and the values of `further`."""
        sample: Sample = {} if "image" in self.further else {"image": self.image(index)}
        if self.labels.ndim == 1 or self.labels.shape[1]:
            sample["label"] = self.labels[index]
        return sample | {name: value(index) for name, value in self.further.items()}

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """The images with these indices, in the given order."""
        return ImageSet(
            self.labels[list(indices)],
            partial(_of_subset, self.image, indices),
            [self.files[index] for index in indices] if self.files else (),
            {name: [values[index] for index in indices] for name, values in self.columns.items()},
            {name: partial(_of_subset, value, indices) for name, value in self.further.items()},
        )

    def in_eight_bits(self, max_level: int) -> "ImageSet":
        """The same images, with 16-bit grey images in 8 bits, as a network sees them. `max_level`: the level that
        becomes white."""
        return replace(self, image=partial(_in_eight_bits, self.image, max_level))

    def joined(self, other: "ImageSet") -> "ImageSet":
        """These images followed by those of another set with the same classes. Keeps only the columns and further
        values that both have."""
        return ImageSet(
            torch.cat([self.labels, other.labels]),
            partial(_of_joined, self.image, other.image, len(self)),
            [*self.files, *other.files] if self.files and other.files else (),
            {name: [*values, *other.columns[name]] for name, values in self.columns.items() if name in other.columns},
            {
                name: partial(_of_joined, value, other.further[name], len(self))
                for name, value in self.further.items()
                if name in other.further
            },
        )


def _in_eight_bits(image: Callable[[int], Image.Image], max_level: int, index: int) -> Image.Image:
    return eight_bits(image(index), max_level)


def _of_subset(value: Callable[[int], Any], indices: Sequence[int], index: int) -> Any:
    return value(indices[index])


def _renumbered(classes: Callable[[int], Tensor], new_numbers: Tensor, index: int) -> Tensor:
    return new_numbers[classes(index)]


def _of_joined(first: Callable[[int], Any], second: Callable[[int], Any], length: int, index: int) -> Any:
    """The value of a joined set; `length`: number of images of the first set."""
    return first(index) if index < length else second(index - length)


@dataclass(frozen=True)
class Data:
    """A data set with its splits.

    - `name`: the name or path by which it was opened.
    - `classes`: names of the classes, in the order of their numbers.
    - `train`: training split; None if all images are for evaluation.
    - `val`: validation split; if the data set is for evaluation only, all its images.
    - `channels`: number of channels of the images: 1 for grey, 3 for colour; default 3.
    - `left_out`: files that are left out, each with its reason.
    - `unreadable`: files of the splits that cannot be decoded; None if that is not known yet.
    - `moved`: for a folder that was split at random, the files that changed splits after the draw, so that copies of an
      image are in one split. With them the split can be repeated without decoding. None for other data sets.
    - `test`: test split, if there is one in addition to `val`; never used for selection.
    - `notes`: what a user should know about the data set: folders that are not read, labels that may be misread.
    - `val_is_test`: whether `val` is the test split of a data set that has a validation split too (see `for_testing`).
    - `typical_size`: median width and median height of the images in pixels; None if they are not decoded yet.
    - `group_column`: column of the metadata whose values are groups of images (of one patient, video, …) that stay in
      one split; None: no groups.
    - `largest_level`: the largest level of its 16-bit grey images; 0 if there are none, or they are not decoded yet.
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
    def has_validation(self) -> bool:
        """Whether `val` has images that are not trained on."""
        if self.train is None or not self.val.files:
            return self.train is not self.val
        return not set(self.val.files) <= set(self.train.files)

    @property
    def has_boxes(self) -> bool:
        """Whether the samples have boxes: "boxes", "classes" and "ignored" (see `vismoe.data.boxes`)."""
        return "boxes" in self.val.further

    @property
    def train_and_val(self) -> list[ImageSet]:
        """`train`, if there is one, and `val`. The first is the split to train on."""
        return [split for split in (self.train, self.val) if split is not None]

    parts = renamed_property("parts", "train_and_val")

    @property
    def for_testing(self) -> "Data":
        """The data set with its test split as `val`, and all other images as `train`; unchanged without a test
        split."""
        if self.test is None or self.train is None:
            return self
        return replace(self, train=self.train.joined(self.val), val=self.test, test=None, val_is_test=True)

    def classes_without(self, images: ImageSet) -> list[str]:
        """The classes without images in `images`."""
        labels = images.labels
        is_shown = labels.any(0) if labels.ndim == 2 else labels.bincount(minlength=len(self.classes)) > 0
        return [name for name, shown in zip(self.classes, is_shown.tolist(), strict=True) if not shown]

    def check_classes(self, images: ImageSet, reason: str) -> None:
        """Checks that every class has images.

        **Arguments:**

        - `images`: the images.
        - `reason`: start of the error message; the names of the missing classes follow.

        **Raises:** ValueError if a class has none.
        """
        if missing := self.classes_without(images):
            raise ValueError(f"{self.name}: {reason} {', '.join(missing)}")

    def class_weights(self, power: float) -> Tensor | None:
        """The weight of each class in the loss.

        **Arguments:**

        - `power`: exponent, 0 or more.

        **Returns:** (K,): (mean class size ÷ class size)^power; in a multi-label data set (images without the class ÷
        images with the class)^power. None if `power` is 0.
        """
        if not power:
            return None
        labels = self.train_and_val[0].labels
        sizes = labels.sum(0) if self.multi_label else labels.bincount(minlength=len(self.classes))
        others = len(labels) - sizes if self.multi_label else sizes.double().mean()
        return (others / sizes.clamp_min(1)).pow(power).float()

    def align_classes(self, classes: Sequence[str]) -> "Data":
        """Renumbers the labels, and the classes of boxes, to match the classes of a network. The data set may lack some
        of these classes.

        **Arguments:**

        - `classes`: the network's class names, in the order of its outputs.

        **Raises:** ValueError if the data set has a class that the network does not have.
        """
        if unknown := sorted(set(self.classes) - set(classes)):
            known = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
            raise ValueError(
                f"{self.name} has classes that the model does not know: {', '.join(unknown)} (it knows {known})"
            )
        new_numbers = torch.tensor([list(classes).index(name) for name in self.classes])

        def renumbered(split: ImageSet) -> ImageSet:
            if not self.multi_label:
                return replace(split, labels=new_numbers[split.labels])
            labels = torch.zeros(len(split), len(classes), dtype=torch.bool)
            labels[:, new_numbers] = split.labels
            further = dict(split.further)
            if self.has_boxes:
                further["classes"] = partial(_renumbered, further["classes"], new_numbers)
            return replace(split, labels=labels, further=further)

        train, test = (None if split is None else renumbered(split) for split in (self.train, self.test))
        return replace(self, classes=list(classes), train=train, val=renumbered(self.val), test=test)

    numbered_as = renamed_method("numbered_as", "align_classes")
