"""What annotation files say about images: one form for all formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vismoe.files import readable

from ..folders.layout import Split
from ..images import Unreadable
from .matching import ImageIndex


class Object(NamedTuple):
    """An object of an image.

    - `name`: name of its class.
    - `left`, `top`, `right`, `bottom`: the edges of its box, in pixels or in fractions of the image's size.
    - `ignored`: whether it is a crowd or difficult: not an object to find, but not a wrong answer either.
    """

    name: str
    left: float
    top: float
    right: float
    bottom: float
    ignored: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects.

    - `file`: path of the image, relative to the folder of the data set.
    - `objects`: its objects; may be empty.
    - `size`: its width and height in pixels, if the annotation gives them.
    - `columns`: other values of the annotation, as text.
    """

    file: str
    objects: Sequence[Object]
    size: tuple[int, int] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotations:
    """The annotations of a data set.

    - `splits`: the images of each split; the key is None if there are no splits.
    - `files`: the annotation files that were read.
    - `order`: names of the classes in the order of the annotation files; empty: alphabetical.
    - `fractions`: whether boxes are in fractions of the image's size, not in pixels; default False.
    - `left_out`: images that are named but missing, and others that are left out.
    - `unlisted`: why an image of the folder that is in no split is left out.
    - `notes`: notes to the user.
    """

    splits: Mapping[Split | None, Sequence[AnnotatedImage]]
    files: Sequence[Path]
    unlisted: str
    order: Sequence[str] = ()
    fractions: bool = False
    left_out: Sequence[Unreadable] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Found:
    """Annotations that a folder has.

    - `kind`: the format, for messages.
    - `source`: the files, for messages.
    - `read`: reads them.
    """

    kind: str
    source: str
    read: Callable[[], Annotations]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    **Raises:** ValueError if it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error}") from error


@dataclass(frozen=True)
class BoxFolder:
    """The content of a folder in which annotations are searched.

    - `root`: the folder.
    - `images`: its images, by path relative to `root`.
    - `others`: its other files.
    """

    root: Path
    images: ImageIndex
    others: Sequence[Path]

    def relative(self, path: Path) -> str:
        """A path relative to the folder, as text."""
        return readable(path.relative_to(self.root).as_posix())

    def listed(self, paths: Sequence[Path], most: int = 3) -> str:
        """The names of files, for messages."""
        names = [self.relative(path) for path in paths]
        return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
