"""Decodes every file of a set once, before hours of training, and leaves out the unreadable ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..batches import ignore_stop_signals
from ..image_set import Data, ImageSet
from ..images import Unreadable, largest_level

T = TypeVar("T")
FEWER_BITS = (8, 10, 12, 14)
"""Bits of cameras and scanners that are written into files of 16."""


class _Decoded(Dataset[T | Unreadable]):
    """A function's result of each image, or why it cannot be read."""

    def __init__(self, images: ImageSet, function: Callable[[Image.Image], T]):
        self.images, self.function = images, function

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> T | Unreadable:
        try:
            image = self.images.image(index)
        except ValueError as error:
            if not self.images.files:
                raise
            return Unreadable.of(self.images.files[index], error)
        return self.function(image)


def for_each_image(images: ImageSet, function: Callable[[Image.Image], T], workers: int = 0) -> list[T | Unreadable]:
    """A function's result of each image of a set, in order, or why its file cannot be read. Each is decoded once.

    **Arguments:** `workers`: processes that decode and call the function, default 0: this process.
    """
    decoded = _Decoded(images, function)
    loader = DataLoader(decoded, 64, num_workers=workers, collate_fn=list, worker_init_fn=ignore_stop_signals)
    return [entry for batch in loader for entry in batch]


@dataclass(frozen=True)
class ImageStats:
    """What is seen of an image as it is decoded: its size in pixels, and its largest level where it has 16 bits of
    grey, otherwise 0."""

    width: int
    height: int
    level: int = 0


def image_stats(image: Image.Image) -> ImageStats:
    """An image's size and level."""
    return ImageStats(*image.size, largest_level(image))


def with_image_stats(data: Data, looks: Sequence[ImageStats]) -> Data:
    """A set with what is seen of its images: their typical size, and the largest level of those of 16 bits."""
    if not looks:
        return data
    size = round(median(look.width for look in looks)), round(median(look.height for look in looks))
    return replace(data, typical_size=size, largest_level=max(look.level for look in looks))


def note_of_levels(data: Data, max_level: int | None = None) -> str:
    """What is to be said of a set's images of 16 bits; "" where there is nothing.

    **Arguments:** `max_level`: the level that the network takes as white, default None: 65,535.
    """
    largest = data.largest_level
    if max_level is not None:
        if largest <= max_level:
            return ""
        return f"images of 16 bits have levels up to {largest:,}: all above max_level={max_level:,} are white"
    bits = next((bits for bits in FEWER_BITS if 0 < largest < 2**bits), None)
    if bits is None:
        return ""
    return (
        f"no level of the images of 16 bits is above {largest:,}: they seem to have {bits} bits, and are nearly black, "
        f"as 65,535 is taken as white; trained with --max-level {2**bits - 1} a network takes that as white"
    )


def check_images(data: Data, max_unreadable: float, workers: int = 0) -> Data:
    """A set without the files that cannot be decoded; `left_out` of the result names them. All are decoded, unless
    they were decoded when the set was opened.

    **Arguments:** `max_unreadable`: largest share of files that may be left out; `workers`: processes that decode,
    default 0: this process.

    **Raises:** ValueError where the share is larger, or too few images remain (see `without_files`).
    """
    if data.unreadable is not None:
        files = {file for part in _splits(data) for file in part.files}
        return accept(data, [entry for entry in data.unreadable if entry.file in files], max_unreadable)
    parts = [part for part in _splits(data) if part.files]
    decoded = [entry for part in parts for entry in for_each_image(part, image_stats, workers)]
    data = with_image_stats(data, [entry for entry in decoded if isinstance(entry, ImageStats)])
    return accept(data, [entry for entry in decoded if isinstance(entry, Unreadable)], max_unreadable)


def accept(data: Data, unreadable: Sequence[Unreadable], max_unreadable: float) -> Data:
    """A set without files that could not be decoded.

    **Raises:** ValueError where the share of these and the files that were left out before is above `max_unreadable`,
    or `max_unreadable` is not in 0…1.
    """
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable={max_unreadable}: accepted are shares, 0 to 1")
    left_out = sorted([*data.left_out, *unreadable], key=lambda entry: entry.file)
    total = sum(map(len, _splits(data))) + len(data.left_out)
    if len(left_out) > max_unreadable * total:
        examples = "; ".join(f"{entry.file!r}: {entry.reason}" for entry in left_out[:3])
        raise ValueError(
            f"{data.name}: {len(left_out)} of {total} files cannot be used, more than a share of max_unreadable="
            f"{max_unreadable:g} ({examples}{'; …' if len(left_out) > 3 else ''}): mend or remove them, or accept more"
        )
    return replace(without_files(data, left_out), unreadable=())


def without_files(data: Data, left_out: Sequence[Unreadable]) -> Data:
    """A set without some files.

    **Raises:** ValueError where a class has no image to train on any more, or a split has no image.
    """
    removed = {entry.file for entry in left_out}

    def remaining(part: ImageSet) -> ImageSet:
        if removed.isdisjoint(part.files):
            return part
        return part.subset([index for index, file in enumerate(part.files) if file not in removed])

    train, val, test = (None if part is None else remaining(part) for part in (data.train, data.val, data.test))
    assert val is not None
    for part in (train, val, test):
        if part is not None and not len(part):
            raise ValueError(
                f"{data.name}: no image that can be read is left to {'train' if part is train else 'evaluate'} on"
            )
    if train is not None:
        data.check_classes(train, "no image to train on that can be read is left of")
    return replace(data, train=train, val=val, test=test, left_out=tuple(left_out))


def _splits(data: Data) -> list[ImageSet]:
    return [*data.train_and_val, *([] if data.test is None else [data.test])]
