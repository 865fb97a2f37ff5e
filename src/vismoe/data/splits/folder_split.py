"""A folder in one piece split at random: a share of each class, and all copies of an image on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import torch

from ..batches import mix_seeds
from ..image_set import Data
from ..images import Unreadable
from .duplicates import find_duplicates
from .fingerprints import Fingerprint, try_fingerprints
from .grouped_split import grouped_split


def split_folder(
    data: Data, seed: int, share: float = 0.25, workers: int = 0, moved: Sequence[str] | None = None
) -> Data:
    """A set in one piece (`train` is None) with a share of it to evaluate on.

    Each class is drawn from by `draw_of_each_class`. Where copies of an image, exact or near, are on both sides then,
    `grouped_split` moves images until they are not; a folder without copies is split as drawn.

    **Arguments:** `seed`: of the draw; `workers`: processes that decode the images, each once; `moved`: the files that
    change sides after the draw, as an earlier split had them in `Data.moved`: nothing is decoded then.

    **Returns:** the set with `train`, `val` and `moved`, and, where the images were decoded, `unreadable`. Files that
    cannot be decoded stay in the part that they were drawn for.

    **Raises:** ValueError where nothing can be held out.
    """
    whole = data.val
    try:
        drawn = draw_of_each_class(_names(data), seed, share)
        if moved is None:
            prints = try_fingerprints(whole, workers)
            held_out = _without_copies_to_train_on(whole.labels, prints, drawn, seed, share)
            data = replace(data, unreadable=tuple(entry for entry in prints if isinstance(entry, Unreadable)))
        else:
            files = set(moved)
            held_out = drawn ^ {index for index, file in enumerate(whole.files) if file in files}
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    train = whole.subset([index for index in range(len(whole)) if index not in held_out])
    changed = tuple(whole.files[index] for index in sorted(drawn ^ held_out))
    return replace(data, train=train, val=whole.subset(sorted(held_out)), moved=changed)


def _names(data: Data) -> list[tuple[str, ...]]:
    """The names of what each image shows."""
    rows = data.val.labels.tolist()
    if not data.multi_label:
        return [(data.classes[label],) for label in rows]
    return [tuple(name for name, shown in zip(data.classes, row, strict=True) if shown) for row in rows]


def _without_copies_to_train_on(
    labels: torch.Tensor, prints: Sequence[Fingerprint | Unreadable], drawn: set[int], seed: int, share: float
) -> set[int]:
    """What is held out, once no image of it has a copy to train on."""
    readable = [index for index, print_ in enumerate(prints) if isinstance(print_, Fingerprint)]
    known = [print_ for print_ in prints if isinstance(print_, Fingerprint)]
    chosen = [place for place, index in enumerate(readable) if index in drawn]
    if not chosen:  # what cannot be read has no copies
        return drawn
    _, held_out = grouped_split(labels[readable], find_duplicates(known).groups, seed, share, chosen)
    return drawn.difference(readable) | {readable[place] for place in held_out}


def draw_of_each_class(labels: Sequence[tuple[str, ...]], seed: int, share: float) -> set[int]:
    """A share of the images of each class (of each combination of labels), drawn by the seed: of one that has two or
    more at least one and not all; of the combinations that occur once that share of all of them. No label is left
    without an image to train on. Runs before there were groups have this split.

    **Arguments:** `labels`: of each image, the names of what it shows.

    **Raises:** ValueError where nothing can be held out.
    """
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, names in enumerate(labels):
        alike[tuple(sorted(names))].append(number)
    single = [numbers[0] for _, numbers in sorted(alike.items()) if len(numbers) == 1]
    groups = [numbers for _, numbers in sorted(alike.items()) if len(numbers) > 1] + [single]
    left = Counter(name for names in labels for name in names)
    out: set[int] = set()
    for numbers in groups:
        if numbers:
            # A seed of each group's own: a new class leaves the split of the others as it was.
            own = crc32("\0".join(sorted(labels[numbers[0]])).encode())
            generator = torch.Generator().manual_seed(mix_seeds(seed, own))
            wanted = min(max(1, round(share * len(numbers))), len(numbers) - 1)
            for place in torch.randperm(len(numbers), generator=generator).tolist():
                names = labels[numbers[place]]
                if wanted and all(left[name] > 1 for name in names):
                    left.subtract(names)
                    out.add(numbers[place])
                    wanted -= 1
    if not out:
        raise ValueError("no class has two images, so that none can be held out: expected at least two of a class")
    return out
