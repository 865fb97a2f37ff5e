"""Image files: listed and decoded."""

import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (".avif", ".cr2", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".svg", ".tga")
"""Suffixes of images that are not read; they are reported, so that no photographs are lost in silence."""
MAX_PIXELS = 100_000_000
"""An image whose header claims more pixels is not decoded: a small file can claim to be enormous."""
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
"""The operation that makes an image upright, by its orientation tag (EXIF). Pillow's own function also rewrites the
tags, and fails where one of them has an odd type."""
UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError)
"""Errors of Pillow's decoders for damaged files, beside their own types."""


@dataclass(frozen=True)
class Unreadable:
    """A file that is left out: its path below the set's folder, and why."""

    file: str
    reason: str

    @staticmethod
    def of(file: str | Path, error: ValueError) -> "Unreadable":
        """From the error that `read_image` raised for a file."""
        return Unreadable(Path(file).as_posix(), str(error).partition(FAILED)[2] or str(error))


def list_images(root: Path) -> tuple[list[Path], list[Unreadable]]:
    """Every image file below a folder, known by its suffix, sorted by path; and the files that are left out: images of
    other kinds, links that lead out of the folder, to another folder, or nowhere, pipes and devices. Hidden files and
    folders are skipped."""
    real_root, images, left_out = Path(os.path.realpath(root)), [], []
    for path in _walk(root):
        if reason := _reason_not_to_open(path, real_root):
            left_out.append(Unreadable(path.relative_to(root).as_posix(), reason))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif path.suffix.lower() in OTHER_SUFFIXES:
            kind = path.suffix[1:].upper()
            left_out.append(Unreadable(path.relative_to(root).as_posix(), f"{kind} is not read: convert it to JPEG"))
    return sorted(images), sorted(left_out, key=lambda entry: entry.file)


def _reason_not_to_open(path: Path, real_root: Path) -> str:
    """Why a path is not opened; "" where it is a file, or a link to a file below the root."""
    target = Path(os.path.realpath(path))
    if path.is_symlink():
        if not target.exists():
            return "a link that leads nowhere"
        if target.is_dir():
            return "a link to a folder: not followed"
        if not target.is_relative_to(real_root):
            return "a link that leads out of the folder: not followed"
    return "" if target.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES else "no regular file"


def _walk(root: Path) -> Iterator[Path]:
    """Files and links of any kind, except hidden ones."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        parent = Path(folder)
        yield from (parent / name for name in folders if (parent / name).is_symlink())
        yield from (parent / name for name in files if not name.startswith("."))


def read_image(path: Path) -> Image.Image:
    """Decodes an image, upright.

    **Raises:** ValueError where it is no image, is damaged, or its header claims more than MAX_PIXELS.
    """
    try:
        # Pillow has a limit of its own; here MAX_PIXELS decides.
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
    """A sixteen-bit grey image as eight-bit grey; Pillow's own conversion clips at 255. Others are unchanged."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))


def flatten_alpha(image: Image.Image) -> Image.Image:
    """An image with transparency on white ground. Other images are unchanged."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
