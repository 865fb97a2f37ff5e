"""Duplicates of images: the same pixels, or nearly the same."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .fingerprints import Fingerprint

BITS, CORRELATION, SHAPE = 6, 0.985, 1.1
FLAT, FREQUENCIES = 4.0, 12
"""Contrast (grey levels, of 255) and number of set bits below which a hash says too little, as for empty grounds,
gradients, and rings of hairlines."""
BLOCK = 64
"""Images that are compared with all others at once."""


@dataclass(frozen=True)
class Duplicates:
    """The duplicates among N images.

    - `fingerprints`: of each image.
    - `groups`: number of the group of each image. Groups are numbered in the order of their first images; most have
      one image.
    - `exact`: pairs of indices, each copy with the first image of the same pixels.
    - `near`: pairs of indices, as many as connect a group.
    """

    fingerprints: Sequence[Fingerprint]
    groups: list[int]
    exact: list[tuple[int, int]]
    near: list[tuple[int, int]]

    def subset(self, indices: Sequence[int]) -> "Duplicates":
        """The duplicates among some of the images, in the order given. Groups stay together, even where the image that
        connected them is left out."""
        place = {index: number for number, index in enumerate(indices)}
        prints = [self.fingerprints[index] for index in indices]
        groups = _numbered([self.groups[index] for index in indices])
        near = [(place[a], place[b]) for a, b in self.near if a in place and b in place]
        return Duplicates(prints, groups, _exact(prints), sorted((min(pair), max(pair)) for pair in near))


def find_duplicates(fingerprints: Sequence[Fingerprint]) -> Duplicates:
    """Groups of images that are the same, or nearly: chains of such pairs are one group.

    Two images are near duplicates where their hashes differ in at most 6 of 64 bits, their thumbnails correlate by at
    least 0.985, and their shapes (width ÷ height) differ by at most a tenth. Images of almost no contrast, and
    gradients, have no near duplicates. Mirrored or turned images and crops of more than a few percent are not found.

    Measured (benchmarks/near_duplicates.py) on 658 stamps of Tux Paint, 2,000 images of openclipart and 2,000 of
    Fashion-MNIST. Found again: as JPEG of quality 50, 99 %, 96 % and 100 %; at half the size, 99 %, 96 % and 100 %;
    cropped by 2 %, 80 %, 83 % and 99 %. Of all pairs 2 (of 0.2 million), 13 (of 1.6) and 7 (of 2.0) are called near:
    in the first two sets versions of one drawing, in the last one other garments of one cut.
    """
    exact = _exact(fingerprints)
    copies = {copy for _, copy in exact}
    group = np.arange(len(fingerprints))
    near = []
    candidates = [i for i, print_ in enumerate(fingerprints) if i not in copies and _is_distinctive(print_)]
    if candidates:
        first_of_group, pairs = _near([fingerprints[i] for i in candidates])
        near = [(candidates[a], candidates[b]) for a, b in pairs]
        group[candidates] = np.array(candidates)[first_of_group]
    for first, copy in exact:
        group[copy] = group[first]
    return Duplicates(fingerprints, _numbered(group.tolist()), exact, near)


def _is_distinctive(print_: Fingerprint) -> bool:
    return print_.contrast >= FLAT and print_.phash.bit_count() >= FREQUENCIES


def _exact(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index, print_ in enumerate(fingerprints):
        by_digest[print_.digest].append(index)
    return sorted((first, copy) for first, *copies in by_digest.values() for copy in copies)


def _near(fingerprints: Sequence[Fingerprint]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The first image of each image's group, and enough pairs to connect the groups. Each image is compared with all
    later ones that are not in its group already, a block of them at once."""
    hashes = np.array([print_.phash for print_ in fingerprints], np.uint64)
    thumbnails = np.stack([print_.thumbnail for print_ in fingerprints])
    shapes = np.log([print_.width / print_.height for print_ in fingerprints])
    group, pairs = np.arange(len(hashes)), []
    for start in range(0, len(hashes), BLOCK):
        block = slice(start, start + BLOCK)
        alike = np.bitwise_count(hashes[block, None] ^ hashes[start:]) <= BITS
        alike[:, :BLOCK] = np.triu(alike[:, :BLOCK], 1)
        columns = np.flatnonzero(alike.any(0)) + start
        close = alike[:, columns - start] & (group[block, None] != group[columns])
        close &= np.abs(shapes[block, None] - shapes[columns]) <= np.log(SHAPE)
        columns, close = columns[close.any(0)], close[:, close.any(0)]
        # One product with all that are left: quick, too, where the hashes of many unlike images are alike.
        near = close & (thumbnails[block] @ thumbnails[columns].T >= CORRELATION)
        for row, column in np.argwhere(near):
            index, duplicate = start + row, columns[column]
            if group[duplicate] != group[index]:
                pairs.append((int(index), int(duplicate)))
                low, high = sorted((group[index], group[duplicate]))
                group[group == high] = low
    return group, pairs


def _numbered(groups: Sequence[int]) -> list[int]:
    """The same groups, numbered in the order of their first images."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]
