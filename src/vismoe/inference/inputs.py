"""Opens a user's inputs as samples: files, folders of files, images in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from vismoe.data import Sample, Unreadable, list_images

Given = str | Path | Image.Image
"""An image file, a folder of them, or an image."""


def open_inputs(
    given: Given | Iterable[Given],
    read: Callable[[Path], Sample],
    left_out: Callable[[Unreadable], None] | None = None,
) -> Iterator[tuple[str, Sample]]:
    """Samples with their titles, each decoded when it is asked for.

    **Arguments:** `given`: files, folders or images; `read`: gives the sample of a file; `left_out`: is called with
    each file of a folder that cannot be read.

    **Raises:** FileNotFoundError for a path that does not exist, ValueError for a folder without images, both before
    the first sample; ValueError for a damaged file, when it is decoded.
    """
    items: list[Given] = [given] if isinstance(given, str | Path | Image.Image) else list(given)
    listed: list[tuple[Path | Image.Image, Path | None]] = []  # each with the folder that it comes from
    for item in items:
        if isinstance(item, Image.Image):
            listed.append((item, None))
        elif Path(item).is_dir():
            files, unreadable = list_images(Path(item))
            if not files:
                raise ValueError(f"{item} holds no images")
            listed += [(path, Path(item)) for path in files]
            if left_out is not None:
                for entry in unreadable:
                    left_out(entry)
        elif Path(item).is_file():
            listed.append((Path(item), None))
        else:
            raise FileNotFoundError(f"{item}: no such image or folder")
    return _decoded(listed, read, left_out)


def _decoded(
    listed: Sequence[tuple[Path | Image.Image, Path | None]],
    read: Callable[[Path], Sample],
    left_out: Callable[[Unreadable], None] | None,
) -> Iterator[tuple[str, Sample]]:
    for item, folder in listed:
        if isinstance(item, Image.Image):
            yield str(getattr(item, "filename", "") or "image"), {"image": item}
            continue
        try:
            sample = read(item)
        except ValueError as error:
            if folder is None or left_out is None:
                raise
            left_out(Unreadable.of(item.relative_to(folder), error))
            continue
        yield str(item), sample
