"""Finds the format of the annotations in a folder."""

from .annotations import BoxFolder, Found
from .coco import find_coco
from .voc import find_voc

FORMATS = (find_coco, find_voc)


def find_annotations(folder: BoxFolder) -> Found | None:
    """The annotations of a folder; None if it has none.

    **Raises:** ValueError if it has annotations in several formats, or an annotation file is broken.
    """
    found = [annotations for find in FORMATS if (annotations := find(folder)) is not None]
    if len(found) > 1:
        listed = " and in ".join(f"{each.kind} ({each.source})" for each in found)
        raise ValueError(f"{folder.root} has boxes in {listed}: remove the files of one format")
    return found[0] if found else None
