"""Fingerprints of images: size, colours, and hashes that tell whether two images are duplicates."""

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
"""Amplitude, in the orthonormal transform of 1,024 grey levels of 255, that compression may add to a frequency."""
COLOURLESS = 4
"""Largest difference (of 255) between the channels of a pixel in an image that counts as grey."""


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of an image.

    - `width`, `height`: in pixels.
    - `grey`: whether the image has no colours at 32 × 32 pixels.
    - `transparent`: whether at least one pixel is transparent.
    - `digest`: SHA-256 of the size and the decoded pixels; equal for all lossless files of the same pixels.
    - `phash`: perceptual hash, 64 bits.
    - `contrast`: standard deviation of the grey levels, of 255.
    - `thumbnail`: (768,), 16 × 16 colours minus their mean, scaled to norm 1, so the dot product of two thumbnails is
      their correlation; all 0 for an image of a single grey.
    - `level`: the largest level of a 16-bit grey image; 0 for other images.
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
        """Its size and largest level."""
        return ImageStats(self.width, self.height, self.level)

    look = renamed_property("look", "stats")


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an image. A transparent image is put on a white background.

    The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", 3.2.1): the
    image is reduced to 32 × 32 grey levels, and the two-dimensional cosine transform is computed. For each of the 8 × 8
    lowest frequencies, a bit says whether it exceeds their median by more than NOISE.
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
    """The digest of an image, the image on a white background, and whether a pixel is transparent."""
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    exact = image.convert("RGBA" if has_alpha else "RGB")
    transparent = has_alpha and exact.getchannel("A").getextrema() != (255, 255)
    shown = flatten_alpha(exact).convert("RGB") if transparent else exact.convert("RGB")
    hashed = exact if transparent else shown
    return hashlib.sha256(f"{hashed.mode} {hashed.size}".encode() + hashed.tobytes()).digest(), shown, transparent


def try_fingerprints(images: ImageSet, workers: int = 0) -> list[Fingerprint | Unreadable]:
    """The fingerprint of each image, or the reason why it cannot be read. Each image is decoded once."""
    return for_each_image(images, fingerprint, workers)


def fingerprint_all(data: Data, max_unreadable: float, workers: int = 0) -> tuple[Data, list[Fingerprint]]:
    """Computes the fingerprints of the training and validation images. Each image is decoded once.

    **Arguments:**

    - `data`: the data set.
    - `max_unreadable`: largest fraction of files that may be left out, 0 to 1.
    - `workers`: number of processes that decode; default 0: this process.

    **Returns:** the data set without unreadable files, as `check_images` returns it, and the fingerprints of its
    images, first those of `train`, then those of `val`.

    **Raises:** ValueError if more files cannot be decoded, or too few images remain (see `without_files`).
    """
    results = [entry for split in data.train_and_val for entry in try_fingerprints(split, workers)]
    readable = accept(data, [entry for entry in results if isinstance(entry, Unreadable)], max_unreadable)
    fingerprints = [entry for entry in results if isinstance(entry, Fingerprint)]
    return with_image_stats(readable, [entry.stats for entry in fingerprints]), fingerprints
