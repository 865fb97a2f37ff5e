"""Decodes images that strangers sent: formats by an allow-list, size and frames checked before decoding."""

import re
import struct
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from vismoe.data.images import SIGNATURES, UNREADABLE, upright_image

from .errors import ServiceError

FORMATS = {
    "JPEG": SIGNATURES["JPEG"],
    "PNG": SIGNATURES["PNG"],
    "WEBP": SIGNATURES["WebP"],
    "GIF": SIGNATURES["GIF"],
    "BMP": b"BM",
}
"""The accepted formats, by Pillow's names, and the first bytes of their files (a dot: any byte). Others have decoders
with a long history of errors, or none that is needed."""
MAX_PIXELS = 64_000_000
"""Largest number of pixels of an image: more than cameras of phones save by default, and 200 MB decoded."""
MAX_SCANS = 100
"""Largest number of scans of a JPEG file. Progressive ones usually have about ten; a scan of a few bytes may take
as long to decode as all pixels."""
START_OF_SCAN = b"\xff\xda"
"""The marker before a scan. Inside of a scan, the byte 255 is always followed by 0 or by a marker."""
SINGLE = ("JPEG", "MPO", "BMP")
"""Formats whose further images are never decoded: cameras save JPEG files with a second one as a preview (MPO)."""


def decode_image(content: bytes) -> Image.Image:
    """Decodes an image and turns it upright, as `vismoe.data.read_image` does with a file.

    **Arguments:**

    - `content`: the content of an image file.

    **Raises:** ServiceError: "not_an_image" for other content, "bad_image" for an image that is damaged, too large or
    has several frames.
    """
    kinds = [
        kind
        for kind, first in FORMATS.items()
        if re.match(re.escape(first).replace(rb"\.", b"."), content[:12], re.DOTALL)
    ]
    if not kinds:
        raise ServiceError("not_an_image", f"the content is not an image: accepted are {', '.join(FORMATS)}")
    if "JPEG" in kinds and content.count(START_OF_SCAN) > MAX_SCANS:
        raise ServiceError("bad_image", f"the JPEG image has more than {MAX_SCANS} scans: save it again")
    try:
        with Image.open(BytesIO(content), formats=kinds) as image:
            _check(image)
            return upright_image(image)
    except UnidentifiedImageError as error:
        raise ServiceError("bad_image", f"the {kinds[0]} image is damaged: its header cannot be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels() from error
    except (*UNREADABLE, struct.error, MemoryError) as error:
        raise ServiceError("bad_image", f"the {kinds[0]} image is damaged, or of a kind that is not read") from error


def _check(image: Image.Image) -> None:
    """Raises ServiceError for an image that is not to be decoded, by its header."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()
    if image.width < 1 or image.height < 1:
        raise ServiceError("bad_image", "the image has no pixels")
    if image.format not in SINGLE and getattr(image, "is_animated", False):  # looks for a second frame, no further
        raise ServiceError("bad_image", "the image has several frames: send one of them as an image")


def _too_many_pixels() -> ServiceError:
    return ServiceError("bad_image", f"the image has more than {MAX_PIXELS:,} pixels: make it smaller")
