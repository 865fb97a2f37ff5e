"""Data: named sets and folders, splits without leaks, transforms, batches in a reproducible order."""

from .batches import Collate, check_shares, evaluation_batches, mix_seeds, training_batches
from .cached import cached_at_scale, cached_images, memory_of
from .image_set import Batch, Data, ImageSet, Sample
from .images import MAX_LEVEL, Unreadable, eight_bits, flatten_alpha, list_folder, list_images, read_image
from .sets import NAMED, open_data
from .splits.check import check_images, note_of_levels, without
from .splits.duplicates import Duplicates, find_duplicates
from .splits.fingerprints import Fingerprint, fingerprint, fingerprint_all
from .splits.grouped_split import conflicts, grouped_split, hold_out, leakage
from .splits.groups import (
    SharedGroups,
    check_column,
    check_groups,
    joined_groups,
    shared_groups,
    tell_unnamed_groups,
    unnamed_groups,
)
from .splits.summary import summarise, tell, tell_classes, tell_imbalance, tell_reasons
from .transforms import Transform, evaluation_transform, training_transform

__all__ = [
    "MAX_LEVEL",
    "NAMED",
    "Batch",
    "Collate",
    "Data",
    "Duplicates",
    "Fingerprint",
    "ImageSet",
    "Sample",
    "SharedGroups",
    "Transform",
    "Unreadable",
    "cached_at_scale",
    "cached_images",
    "check_column",
    "check_groups",
    "check_images",
    "check_shares",
    "conflicts",
    "eight_bits",
    "evaluation_batches",
    "evaluation_transform",
    "find_duplicates",
    "fingerprint",
    "fingerprint_all",
    "flatten_alpha",
    "grouped_split",
    "hold_out",
    "joined_groups",
    "leakage",
    "list_folder",
    "list_images",
    "memory_of",
    "mix_seeds",
    "note_of_levels",
    "open_data",
    "read_image",
    "shared_groups",
    "summarise",
    "tell",
    "tell_classes",
    "tell_imbalance",
    "tell_reasons",
    "tell_unnamed_groups",
    "training_batches",
    "training_transform",
    "unnamed_groups",
    "without",
]
