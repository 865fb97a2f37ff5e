"""Fingerprints of images: size, kind, and what tells one image from another."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vismoe.files.renamed import renamed_property

from ..image_set import Data, ImageSet
from ..images import Unreadable, eight_bits, flatten_alpha, largest_level
from .check import ImageStats, accept, for_each_image, with_image_stats

SIDE, LOW = 32, 8
NOISE = 4.0
"""Amplitude of a frequency (of an orthonormal transform of 1,024 levels of 255) that compression may leave where a
symmetric image has none."""
COLOURLESS = 4
"""Levels, of 255, by which a pixel's channels may differ where an image counts as grey."""


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of an image.

    - `width`, `height`: in pixels.
    - `grey`: whether it shows no colour at 32 × 32 pixels.
    - `transparent`: whether some pixel is transparent.
    - `digest`: SHA-256 of size and decoded pixels, the same for all lossless files of them.
    - `phash`: a perceptual hash of 64 bits.
    - `contrast`: standard deviation of the grey levels, of 255.
    - `thumbnail` (768,): 16 × 16 colours less their mean, as a vector of length 1 (0 for an image of one grey), so that
      the product of two is their correlation.
    - `level`: the largest level of an image of 16 bits of grey; 0 for others.
    """

    width: int
    height: int
    grey: bool
    transparent: bool
    digest: bytes
    phash: int
    contrast: float
    thumbnail: np.ndarray
    level: int = 0

    @property
    def stats(self) -> ImageStats:
        """Size and level."""
        return ImageStats(self.width, self.height, self.level)

    look = renamed_property("look", "stats")


def fingerprint(image: Image.Image) -> Fingerprint:
    """An image's fingerprint, on white ground where it is transparent.

    The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", 3.2.1): the
    two-dimensional cosine transform of 32 × 32 grey levels, and for each of its 8 × 8 lowest frequencies whether it is
    above their median by more than NOISE.
    """
    from scipy.fft import dctn  # its import takes half a second

    digest, shown, transparent = _opaque(eight_bits(image))
    colours = np.asarray(shown.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    levels = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    low = dctn(levels, norm="ortho")[:LOW, :LOW].ravel()
    thumbnail = colours.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean((1, 3)).ravel()
    thumbnail -= thumbnail.mean()
    return Fingerprint(
        *image.size,
        grey=bool(np.ptp(colours, axis=2).max() <= COLOURLESS),
        transparent=transparent,
        digest=digest,
        phash=int.from_bytes(np.packbits(low > np.median(low) + NOISE).tobytes(), "big"),
        contrast=float(levels.std()),
        thumbnail=thumbnail / max(float(np.linalg.norm(thumbnail)), 1.0),
        level=largest_level(image),
    )


def _opaque(image: Image.Image) -> tuple[bytes, Image.Image, bool]:
    """The digest of an image, the image on white ground, and whether some of it is transparent."""
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    exact = image.convert("RGBA" if has_alpha else "RGB")
    transparent = has_alpha and exact.getchannel("A").getextrema() != (255, 255)
    shown = flatten_alpha(exact).convert("RGB") if transparent else exact.convert("RGB")
    hashed = exact if transparent else shown
    return hashlib.sha256(f"{hashed.mode} {hashed.size}".encode() + hashed.tobytes()).digest(), shown, transparent


def try_fingerprints(images: ImageSet, workers: int = 0) -> list[Fingerprint | Unreadable]:
    """The fingerprint of each image of a set, or why a file has none. Each is decoded once."""
    return for_each_image(images, fingerprint, workers)


def fingerprint_all(data: Data, max_unreadable: float, workers: int = 0) -> tuple[Data, list[Fingerprint]]:
    """Decodes every image of a set once. Returns the set without unreadable files (as `check_images` gives it), and the
    fingerprints of its images, those of `train` before those of `val`.

    **Raises:** ValueError where the share of unreadable files is above `max_unreadable`.
    """
    results = [entry for part in data.train_and_val for entry in try_fingerprints(part, workers)]
    readable = accept(data, [entry for entry in results if isinstance(entry, Unreadable)], max_unreadable)
    prints = [entry for entry in results if isinstance(entry, Fingerprint)]
    return with_image_stats(readable, [entry.stats for entry in prints]), prints
