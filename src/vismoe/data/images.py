"""Image files: listed and decoded."""

import os
import re
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vismoe.files import readable

IMAGE_SUFFIXES = (
    ".apng",
    ".bmp",
    ".dib",
    ".gif",
    ".jfi",
    ".jfif",
    ".jif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".pjp",
    ".pjpeg",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
OTHER_SUFFIXES = (
    ".ai",
    ".arw",
    ".avif",
    ".cr2",
    ".cr3",
    ".cur",
    ".dcm",
    ".dds",
    ".dicom",
    ".dng",
    ".emf",
    ".eps",
    ".exr",
    ".fits",
    ".hdr",
    ".heic",
    ".heif",
    ".hif",
    ".icns",
    ".ico",
    ".j2k",
    ".jp2",
    ".jpx",
    ".jxl",
    ".jxr",
    ".nef",
    ".nii",
    ".orf",
    ".pcx",
    ".pef",
    ".ps",
    ".psd",
    ".raf",
    ".raw",
    ".rw2",
    ".sgi",
    ".svg",
    ".svs",
    ".tga",
    ".wmf",
    ".xbm",
    ".xcf",
    ".xpm",
)
"""Suffixes of images that are not read; they are reported, so that no photographs are lost in silence."""
SIGNATURES = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF8",
    "TIFF": b"II*\0",
    "TIFF (big-endian)": b"MM\0*",
    "WebP": b"RIFF....WEBP",
}
"""The first bytes of images, by kind (a dot: any byte). Files of other suffixes that begin so are reported."""
SYSTEM_FOLDERS = (
    "#recycle",
    "$recycle.bin",
    "@eadir",
    "@recycle",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
)
"""Folders that programs leave among people's own, in lower case. Like hidden ones they are not read."""
TABLE_SUFFIXES = (".csv", ".jsonl")
SHOWN = 3
"""Folders that a note names."""
MAX_LEVEL = 2**16 - 1
"""White in an image of 16 bits."""
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
    """A file that is left out: its path below the set's folder (see `vismoe.files.readable`), and why."""

    file: str
    reason: str

    @staticmethod
    def of(file: str | Path, error: ValueError) -> "Unreadable":
        """From the error that `read_image` raised for a file."""
        return Unreadable(readable(Path(file).as_posix()), str(error).partition(FAILED)[2] or str(error))


@dataclass(frozen=True)
class Listing:
    """What lies below a folder.

    - `images`: the image files, sorted by path.
    - `left_out`: images of other kinds, links that are not followed, pipes and devices.
    - `skipped`: hidden folders and SYSTEM_FOLDERS, by their paths below the folder, sorted.
    - `others`: number of files that are no images, by suffix.
    """

    images: list[Path]
    left_out: list[Unreadable]
    skipped: list[str]
    others: Mapping[str, int]

    @property
    def notes(self) -> list[str]:
        """What is to be said of the files and folders that are not read."""
        notes = []
        if self.skipped:
            shown = ", ".join(f"{name}/" for name in self.skipped[:SHOWN])
            more = f" and {len(self.skipped) - SHOWN} more" if len(self.skipped) > SHOWN else ""
            notes.append(f"hidden folders and those of the system are not read: {shown}{more}")
        others = {suffix: number for suffix, number in self.others.items() if suffix not in TABLE_SUFFIXES}
        if others:
            kinds = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in sorted(others.items()))
            notes.append(f"files that are no images are not read: {kinds}")
        return notes


def list_images(root: Path) -> tuple[list[Path], list[Unreadable]]:
    """Every image file below a folder, known by its suffix, sorted by path; and the files that are left out: images of
    other kinds, images with another suffix, links that lead out of the folder, nowhere, or to a folder around them,
    pipes and devices. Hidden files and folders, and folders of the system such as `@eaDir`, are skipped."""
    listing = list_folder(root)
    return listing.images, listing.left_out


def list_folder(root: Path) -> Listing:
    """All that lies below a folder; see `list_images`."""
    real_root = Path(os.path.realpath(root))
    images: list[Path] = []
    left_out: list[Unreadable] = []
    skipped: list[Path] = []
    others: Counter[str] = Counter()
    for path in _walk(root, real_root, (real_root,), skipped):
        suffix = path.suffix.lower()
        if reason := _reason_not_to_open(path, real_root) or _kind_not_read(path):
            left_out.append(Unreadable(readable(path.relative_to(root).as_posix()), reason))
        elif suffix in IMAGE_SUFFIXES:
            images.append(path)
        else:
            others[suffix] += 1
    skipped_names = sorted(readable(path.relative_to(root).as_posix()) for path in skipped)
    return Listing(sorted(images), sorted(left_out, key=lambda entry: entry.file), skipped_names, others)


def is_skipped(name: str) -> bool:
    """Whether a folder of this name is hidden, or one that a program left behind."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _kind_not_read(path: Path) -> str:
    """Why an image file is not read: its kind, or its suffix; "" for one that is, and for a file that is no image."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or not path.is_file():
        return ""
    if suffix in OTHER_SUFFIXES:
        return f"{suffix[1:].upper()} is not read: convert it to JPEG"
    try:
        with path.open("rb") as file:
            beginning = file.read(12)
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    for kind, signature in SIGNATURES.items():
        if re.match(re.escape(signature).replace(rb"\.", b"."), beginning, re.DOTALL):
            return f"{kind} by its content, not by its suffix {suffix!r}: rename it"
    return ""


def _reason_not_to_open(path: Path, real_root: Path) -> str:
    """Why a path is not opened; "" where it is a file, or a link to a file below the root."""
    target = Path(os.path.realpath(path))
    if path.is_symlink():
        if not target.exists():
            return "a link that leads nowhere"
        if not target.is_relative_to(real_root):
            return "a link that leads out of the folder: not followed"
        if target.is_dir():
            return "a link to a folder around it: not followed"
    return "" if target.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES else "no regular file"


def _walk(folder: Path, real_root: Path, around: tuple[Path, ...], skipped: list[Path]) -> Iterator[Path]:
    """Files, and links that are not followed. Links to folders below the root are followed, unless they lead to one of
    the folders `around` them (real paths), which would never end. Folders that are not read go into `skipped`."""
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        # Path's way is False for a link to itself, where the entry's raises.
        if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
            if not entry.name.startswith("."):
                yield path
        elif is_skipped(entry.name):
            skipped.append(path)
        else:
            real = Path(os.path.realpath(path)) if entry.is_symlink() else around[-1] / entry.name
            if not entry.is_symlink() or (real.is_relative_to(real_root) and not _contains_any(real, around)):
                yield from _walk(path, real_root, (*around, real), skipped)
            else:
                yield path


def _contains_any(folder: Path, others: Iterable[Path]) -> bool:
    return any(other.is_relative_to(folder) for other in others)


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


def eight_bits(image: Image.Image, max_level: int = MAX_LEVEL) -> Image.Image:
    """A sixteen-bit grey image as eight-bit grey, with an alpha channel where a level is transparent (PNG's tRNS);
    Pillow's own conversion clips at 255. Others are unchanged.

    **Arguments:** `max_level`: the level that is white, default 65,535; those above are white too.
    """
    if not image.mode.startswith("I;16"):
        return image
    levels = np.asarray(image)
    grey = (levels.astype(np.float32) / (max_level / 255)).round().clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is None:
        return Image.fromarray(grey)
    alpha = np.where(levels == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def largest_level(image: Image.Image) -> int:
    """The largest level of a sixteen-bit grey image; 0 for other kinds."""
    return int(np.asarray(image).max()) if image.mode.startswith("I;16") else 0


def flatten_alpha(image: Image.Image) -> Image.Image:
    """An image with transparency on white ground. Other images are unchanged."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
