"""Every file of a set decoded once, before hours are spent on it; a set without what cannot be."""

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import DataLoader, Dataset

from ..batches import leave_stopping
from ..image_set import Data, ImageSet
from ..images import Unreadable


class _Checked(Dataset[Unreadable | None]):
    """What cannot be read of each image; None where it can."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Unreadable | None:
        try:
            self.images.image(index)
        except ValueError as error:
            return Unreadable.of(self.images.files[index], error)
        return None


def check_images(data: Data, max_unreadable: float, workers: int = 0) -> Data:
    """A set without the files that cannot be decoded: `left_out` of the result names them. All are decoded, unless
    opening the set did so already.

    **Arguments:** `max_unreadable`: the largest share of files that may be left out; `workers`: processes that decode,
    0: this one does.

    **Raises:** ValueError where the share is larger, and where too little is left (see `without`).
    """
    if data.unreadable is not None:
        files = {file for part in data.parts for file in part.files}
        return accept(data, [entry for entry in data.unreadable if entry.file in files], max_unreadable)
    found: list[Unreadable] = []
    for part in data.parts:
        if part.files:
            checked = DataLoader(
                _Checked(part), 64, num_workers=workers, collate_fn=list, worker_init_fn=leave_stopping
            )
            found += [entry for batch in checked for entry in batch if entry is not None]
    return accept(data, found, max_unreadable)


def accept(data: Data, unreadable: Sequence[Unreadable], max_unreadable: float) -> Data:
    """A set without files that could not be decoded.

    **Raises:** ValueError where the share of what is left out, they and what was before, is above `max_unreadable`, and
    where that is no share.
    """
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable={max_unreadable}: accepted are shares, 0 to 1")
    found = sorted([*data.left_out, *unreadable], key=lambda entry: entry.file)
    total = sum(map(len, data.parts)) + len(data.left_out)
    if len(found) > max_unreadable * total:
        some = "; ".join(f"{entry.file!r}: {entry.reason}" for entry in found[:3])
        raise ValueError(
            f"{data.name}: {len(found)} of {total} files cannot be used, more than a share of max_unreadable="
            f"{max_unreadable:g} ({some}{'; …' if len(found) > 3 else ''}): mend or remove them, or accept more"
        )
    return replace(without(data, found), unreadable=())


def without(data: Data, left_out: Sequence[Unreadable]) -> Data:
    """A set without some files.

    **Raises:** ValueError where a class has no image to train on left, or a part none at all.
    """
    gone = {entry.file for entry in left_out}

    def rest(part: ImageSet) -> ImageSet:
        if gone.isdisjoint(part.files):
            return part
        return part.subset([index for index, file in enumerate(part.files) if file not in gone])

    train, val = None if data.train is None else rest(data.train), rest(data.val)
    for part in (train, val):
        if part is not None and not len(part):
            raise ValueError(
                f"{data.name}: no image that can be read is left to {'train' if part is train else 'evaluate'} on"
            )
    if train is not None and (lost := data.classes_without(train)):
        raise ValueError(f"{data.name}: no image to train on that can be read is left of {', '.join(lost)}")
    return replace(data, train=train, val=val, left_out=tuple(left_out))
