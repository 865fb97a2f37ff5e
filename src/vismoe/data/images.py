"""Image files: which are some, and what is on them."""

import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (".avif", ".cr2", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".svg", ".tga")
"""Of images that are not read: passing over them in silence would lose somebody's photographs."""
MAX_PIXELS = 100_000_000
"""An image whose header claims more is not decoded: a small file can claim to be enormous."""
ORIENTATION = 0x0112
FAILED = " cannot be read as an image: "
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation tag (EXIF). Pillow's own function for it also writes the tags anew,
and fails where one of them is of an odd type."""
UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError)
"""What Pillow's decoders raise for damaged files, beside errors of their own."""


@dataclass(frozen=True)
class Unreadable:
    """A file that is left out: its path below the set's folder, and why."""

    file: str
    reason: str

    @staticmethod
    def of(file: str | Path, error: ValueError) -> "Unreadable":
        """What `read_image` raised for a file."""
        return Unreadable(Path(file).as_posix(), str(error).partition(FAILED)[2] or str(error))


def list_images(root: Path) -> tuple[list[Path], list[Unreadable]]:
    """Every image file below a folder by its suffix, sorted by path, and what is left out: images of other kinds,
    links that lead out of the folder, to another folder, or nowhere, pipes and devices. Hidden files and folders are
    passed over."""
    inside, found, left_out = Path(os.path.realpath(root)), [], []
    for path in _walk(root):
        if reason := _not_a_file(path, inside):
            left_out.append(Unreadable(path.relative_to(root).as_posix(), reason))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(path)
        elif path.suffix.lower() in OTHER_SUFFIXES:
            kind = path.suffix[1:].upper()
            left_out.append(Unreadable(path.relative_to(root).as_posix(), f"{kind} is not read: convert it to JPEG"))
    return sorted(found), sorted(left_out, key=lambda entry: entry.file)


def _not_a_file(path: Path, inside: Path) -> str:
    """Why what lies at a path is not opened; "" where it is a file, or a link to one inside."""
    target = Path(os.path.realpath(path))
    if path.is_symlink():
        if not target.exists():
            return "a link that leads nowhere"
        if target.is_dir():
            return "a link to a folder: not followed"
        if not target.is_relative_to(inside):
            return "a link that leads out of the folder: not followed"
    return "" if target.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES else "no regular file"


def _walk(root: Path) -> Iterator[Path]:
    """Files, and links of any kind, that are not hidden."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(folder)
        yield from (here / name for name in folders if (here / name).is_symlink())
        yield from (here / name for name in files if not name.startswith("."))


def read_image(path: Path) -> Image.Image:
    """Decodes an image, upright.

    **Raises:** ValueError where it is no image, is damaged, or its header claims more than MAX_PIXELS.
    """
    try:
        # Pillow warns of what MAX_PIXELS decides.
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"its header claims {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}")
            image.load()
            turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
            upright = image.copy() if turn is None else image.transpose(turn)
            if upright.mode in ("I", "F"):
                raise ValueError("its 32-bit grey levels have no known range: convert it to 8 or 16 bits")
            return upright
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}{FAILED}no image of a known kind") from error
    except (*UNREADABLE, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}{FAILED}{error}") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey as eight-bit grey, which Pillow's own conversion cuts off at 255; others as they are."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))


def flatten_alpha(image: Image.Image) -> Image.Image:
    """An image with transparency on white ground; others as they are."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
