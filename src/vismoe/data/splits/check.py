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
    """Decodes every file of a folder, and leaves out those that cannot be: `left_out` of the result names them.

    **Raises:** ValueError where their share is above `max_unreadable`.
    """
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
    return without(data, found)


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
    if train is not None:
        seen = train.labels.any(0) if data.multi_label else train.labels.bincount(minlength=len(data.classes)) > 0
        if lost := [name for name, there in zip(data.classes, seen.tolist(), strict=True) if not there]:
            raise ValueError(f"{data.name}: no image to train on that can be read is left of {', '.join(lost)}")
    return replace(data, train=train, val=val, left_out=tuple(left_out))
