"""Decodes every image file of a data set once, before a long training, and leaves out the unreadable ones."""

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
"""Bit depths of cameras and scanners whose images are often stored in 16-bit files."""


class _Decoded(Dataset[T | Unreadable]):
    """A function's result for each image, or the reason why the image cannot be read."""

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
    """Calls a function with each image. Each image is decoded once.

    **Arguments:**

    - `images`: the images.
    - `function`: called with each decoded image.
    - `workers`: number of processes that decode images and call the function; default 0: this process.

    **Returns:** the result for each image, in order, or the reason why its file cannot be read.
    """
    decoded = _Decoded(images, function)
    loader = DataLoader(decoded, 64, num_workers=workers, collate_fn=list, worker_init_fn=ignore_stop_signals)
    return [entry for batch in loader for entry in batch]


@dataclass(frozen=True)
class ImageStats:
    """The size of an image, and the range of its grey levels.

    - `width`, `height`: in pixels.
    - `level`: the largest level of a 16-bit grey image; 0 for other images.
    """

    width: int
    height: int
    level: int = 0


def image_stats(image: Image.Image) -> ImageStats:
    """The size and largest level of an image."""
    return ImageStats(*image.size, largest_level(image))


def with_image_stats(data: Data, stats: Sequence[ImageStats]) -> Data:
    """The data set with `typical_size` and `largest_level` computed from the stats of its images."""
    if not stats:
        return data
    size = round(median(each.width for each in stats)), round(median(each.height for each in stats))
    return replace(data, typical_size=size, largest_level=max(each.level for each in stats))


def note_of_levels(data: Data, max_level: int | None = None) -> str:
    """A note to the user about the levels of 16-bit images; "" if none is needed.

    **Arguments:**

    - `data`: the data set.
    - `max_level`: the level that the network takes as white; default None: 65,535.
    """
    largest = data.largest_level
    if max_level is not None:
        if largest <= max_level:
            return ""
        return f"16-bit images have levels up to {largest:,}: all levels above max_level={max_level:,} become white"
    bits = next((bits for bits in FEWER_BITS if 0 < largest < 2**bits), None)
    if bits is None:
        return ""
    return (
        f"16-bit images have no level above {largest:,}: they seem to have {bits} bits and look nearly black, because "
        f"65,535 is white; train with --max-level {2**bits - 1} to make that level white"
    )


def check_images(data: Data, max_unreadable: float, workers: int = 0) -> Data:
    """Leaves out the files that cannot be decoded. All files are decoded, unless that was done at opening.

    **Arguments:**

    - `data`: the data set.
    - `max_unreadable`: largest fraction of files that may be left out, 0 to 1.
    - `workers`: number of processes that decode; default 0: this process.

    **Returns:** the data set without these files; its `left_out` names them.

    **Raises:** ValueError if more files cannot be decoded, or too few images remain (see `without_files`).
    """
    if data.unreadable is not None:
        files = {file for split in _splits(data) for file in split.files}
        return accept(data, [entry for entry in data.unreadable if entry.file in files], max_unreadable)
    splits = [split for split in _splits(data) if split.files]
    decoded = [entry for split in splits for entry in for_each_image(split, image_stats, workers)]
    data = with_image_stats(data, [entry for entry in decoded if isinstance(entry, ImageStats)])
    return accept(data, [entry for entry in decoded if isinstance(entry, Unreadable)], max_unreadable)


def accept(data: Data, unreadable: Sequence[Unreadable], max_unreadable: float) -> Data:
    """Leaves out files that could not be decoded, if they are few enough.

    **Arguments:**

    - `data`: the data set.
    - `unreadable`: the files that could not be decoded.
    - `max_unreadable`: largest fraction of files that may be left out, 0 to 1; files left out earlier count.

    **Raises:** ValueError if there are more such files, or `max_unreadable` is not in 0…1.
    """
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable={max_unreadable}: accepted are fractions, 0 to 1")
    left_out = sorted([*data.left_out, *unreadable], key=lambda entry: entry.file)
    total = sum(map(len, _splits(data))) + len(data.left_out)
    if len(left_out) > max_unreadable * total:
        examples = "; ".join(f"{entry.file!r}: {entry.reason}" for entry in left_out[:3])
        raise ValueError(
            f"{data.name}: {len(left_out)} of {total} files cannot be used, more than a fraction of max_unreadable="
            f"{max_unreadable:g} ({examples}{'; …' if len(left_out) > 3 else ''}): repair or remove them, or raise the "
            "limit"
        )
    return replace(without_files(data, left_out), unreadable=())


def without_files(data: Data, left_out: Sequence[Unreadable]) -> Data:
    """Removes files from a data set; its `left_out` is then exactly these files.

    **Arguments:**

    - `data`: the data set.
    - `left_out`: the files to remove, each with its reason.

    **Raises:** ValueError if a class has no training image then, or a split has no image.
    """
    removed = {entry.file for entry in left_out}

    def remaining(split: ImageSet) -> ImageSet:
        if removed.isdisjoint(split.files):
            return split
        return split.subset([index for index, file in enumerate(split.files) if file not in removed])

    train, val, test = (None if split is None else remaining(split) for split in (data.train, data.val, data.test))
    assert val is not None
    for split in (train, val, test):
        if split is not None and not len(split):
            purpose = "train" if split is train else "evaluate"
            raise ValueError(f"{data.name}: no readable image is left to {purpose} on")
    if train is not None:
        data.check_classes(train, "no readable training images of")
    return replace(data, train=train, val=val, test=test, left_out=tuple(left_out))


def _splits(data: Data) -> list[ImageSet]:
    return [*data.train_and_val, *([] if data.test is None else [data.test])]
