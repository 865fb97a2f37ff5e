"""Lists and decodes image files."""

import os
import re
import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
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
"""Suffixes of image files that are not read. They are reported, so no image is ignored without a note."""
SIGNATURES = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF8",
    "TIFF": b"II*\0",
    "TIFF (big-endian)": b"MM\0*",
    "WebP": b"RIFF....WEBP",
}
"""The first bytes of image files, by format (a dot: any byte). Such files with another suffix are reported."""
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
"""Folders that programs and systems create, in lower case. They are skipped, like hidden folders."""
TABLE_SUFFIXES = (".csv", ".jsonl")
SHOWN = 3
"""Number of folders that a note names."""
MAX_LEVEL = 2**16 - 1
"""Default level of white in a 16-bit image."""
MAX_PIXELS = 100_000_000
"""Largest number of pixels of an image. A small file can declare an enormous image in its header."""
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
"""The operation that makes an image upright, by its EXIF orientation tag. Pillow's `exif_transpose` is not used: it
also rewrites the tags, and fails if a tag has an unusual type."""
SWAPS_SIDES = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
"""The operations that exchange width and height."""
UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError)
"""Errors that Pillow's decoders raise for damaged files."""


@dataclass(frozen=True)
class Unreadable:
    """A file that is left out.

    - `file`: its path relative to the folder of the data set, as readable text (see `vismoe.files.readable`).
    - `reason`: why it is left out.
    """

    file: str
    reason: str

    @staticmethod
    def of(file: str | Path, error: ValueError) -> "Unreadable":
        """Made from the error that `read_image` raised for a file."""
        return Unreadable(readable(Path(file).as_posix()), str(error).partition(FAILED)[2] or str(error))


@dataclass(frozen=True)
class Listing:
    """The content of a folder and its subfolders.

    - `images`: the image files, sorted by path.
    - `left_out`: image files of other formats, links that are not followed, pipes and devices.
    - `skipped`: relative paths of hidden folders and SYSTEM_FOLDERS, sorted.
    - `other_files`: the files that are not images, sorted by path.
    """

    images: list[Path]
    left_out: list[Unreadable]
    skipped: list[str]
    other_files: list[Path]

    @property
    def notes(self) -> list[str]:
        """Notes to the user about files and folders that are not read."""
        notes = []
        if self.skipped:
            shown = ", ".join(f"{name}/" for name in self.skipped[:SHOWN])
            more = f" and {len(self.skipped) - SHOWN} more" if len(self.skipped) > SHOWN else ""
            notes.append(f"hidden folders and system folders are not read: {shown}{more}")
        counts = Counter(path.suffix.lower() for path in self.other_files)
        others = {suffix: number for suffix, number in counts.items() if suffix not in TABLE_SUFFIXES}
        if others:
            kinds = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in sorted(others.items()))
            notes.append(f"files that are not images are not read: {kinds}")
        return notes


def list_images(root: Path) -> tuple[list[Path], list[Unreadable]]:
    """Lists the image files in a folder and its subfolders, by their suffixes.

    Hidden files and folders, and system folders such as `@eaDir`, are skipped.

    **Arguments:**

    - `root`: the folder.

    **Returns:** the image files, sorted by path; and the files that are left out: images of other formats, images with
    a wrong suffix, pipes and devices, and links whose target does not exist, is outside `root`, or contains the link.
    """
    listing = list_folder(root)
    return listing.images, listing.left_out


def list_folder(root: Path) -> Listing:
    """Lists everything in a folder and its subfolders; see `list_images`."""
    real_root = Path(os.path.realpath(root))
    images: list[Path] = []
    left_out: list[Unreadable] = []
    skipped: list[Path] = []
    other_files: list[Path] = []
    for path in _walk(root, real_root, (real_root,), skipped):
        suffix = path.suffix.lower()
        if reason := _reason_not_to_open(path, real_root) or _kind_not_read(path):
            left_out.append(Unreadable(readable(path.relative_to(root).as_posix()), reason))
        elif suffix in IMAGE_SUFFIXES:
            images.append(path)
        else:
            other_files.append(path)
    skipped_names = sorted(readable(path.relative_to(root).as_posix()) for path in skipped)
    left_out.sort(key=lambda entry: entry.file)
    return Listing(sorted(images), left_out, skipped_names, sorted(other_files))


def is_skipped(name: str) -> bool:
    """Whether a folder with this name is skipped: a hidden folder or a system folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _kind_not_read(path: Path) -> str:
    """Why an image file is not read: its format or its suffix; "" if it is read, or is not an image."""
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
            return f"its content is {kind}, but its suffix is {suffix!r}: rename it"
    return ""


def _reason_not_to_open(path: Path, real_root: Path) -> str:
    """Why a path is not opened; "" for a file, and for a link to a file in the root folder."""
    target = Path(os.path.realpath(path))
    if path.is_symlink():
        if not target.exists():
            return "a link whose target does not exist"
        if not target.is_relative_to(real_root):
            return "a link to a path outside the folder: not followed"
        if target.is_dir():
            return "a link to a folder that contains it: not followed"
    return "" if target.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES else "not a regular file"


def _walk(folder: Path, real_root: Path, parents: tuple[Path, ...], skipped: list[Path]) -> Iterator[Path]:
    """Yields files, and links that are not followed. Adds the folders that are not read to `skipped`.

    Links to folders in the root folder are followed, except links to a folder that contains them: that would never end.
    `parents`: real paths of the folders that contain `folder`, and its own.
    """
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        path = folder / entry.name
        # For a link to itself Path.is_dir returns False, while DirEntry.is_dir raises an error.
        if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
            if not entry.name.startswith("."):
                yield path
        elif is_skipped(entry.name):
            skipped.append(path)
        else:
            real = Path(os.path.realpath(path)) if entry.is_symlink() else parents[-1] / entry.name
            if not entry.is_symlink() or (real.is_relative_to(real_root) and not _contains_any(real, parents)):
                yield from _walk(path, real_root, (*parents, real), skipped)
            else:
                yield path


def _contains_any(folder: Path, others: Iterable[Path]) -> bool:
    return any(other.is_relative_to(folder) for other in others)


def read_image(path: Path) -> Image.Image:
    """Decodes an image file and turns it upright, by its EXIF orientation.

    **Arguments:**

    - `path`: the file.

    **Returns:** the image, in the mode of the file.

    **Raises:** ValueError if the file is not an image, is damaged, or its header declares more than MAX_PIXELS pixels.
    """
    try:
        # Pillow warns above its own limit; here MAX_PIXELS is the limit.
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"its header declares {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}")
            return upright_image(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}{FAILED}not an image of a known format") from error
    except (*UNREADABLE, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}{FAILED}{error}") from error


def upright_image(image: Image.Image) -> Image.Image:
    """Decodes an opened image and turns it upright, by its EXIF orientation.

    **Raises:** ValueError for 32-bit grey levels; one of UNREADABLE or struct.error for a damaged image.
    """
    image.load()
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    upright = image.copy() if turn is None else image.transpose(turn)
    if upright.mode in ("I", "F"):
        raise ValueError("the range of its 32-bit grey levels is unknown: convert it to 8 or 16 bits")
    return upright


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    - `width`, `height`: size of the stored image in pixels.
    - `turn`: the operation that makes it upright; None if there is none.
    """

    width: int
    height: int
    turn: Image.Transpose | None = None

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the image as `read_image` returns it."""
        return (self.height, self.width) if self.turn in SWAPS_SIDES else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Reads the size and orientation of an image file without decoding it.

    A PNG file may have its orientation after the pixels. It is not found there.

    **Arguments:**

    - `path`: the file.

    **Raises:** ValueError if the file is not an image, or its header is damaged.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            # Pillow decodes a PNG file without orientation to look for one after the pixels.
            is_known = image.format != "PNG" or "exif" in image.info
            turn = TURNS.get(image.getexif().get(ORIENTATION, 1)) if is_known else None
            return Header(*image.size, turn)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}{FAILED}not an image of a known format") from error
    except (*UNREADABLE, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}{FAILED}{error}") from error


def eight_bits(image: Image.Image, max_level: int = MAX_LEVEL) -> Image.Image:
    """Converts a 16-bit grey image to 8 bits; returns other images unchanged. (Pillow's conversion clips at 255.)

    **Arguments:**

    - `image`: the image.
    - `max_level`: the level that becomes white, as all levels above it; default 65,535.

    **Returns:** the image in mode L, or LA if the file declares a transparent level (PNG's tRNS).
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
    """The largest level of a 16-bit grey image; 0 for other images."""
    return int(np.asarray(image).max()) if image.mode.startswith("I;16") else 0


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Puts a transparent image on a white background; returns other images unchanged."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
