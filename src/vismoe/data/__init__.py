"""Data: named data sets and folders, splits without leaks, transforms, batches in a reproducible order."""

from typing import TYPE_CHECKING

from vismoe.files.renamed import renamed_functions

from .batches import Collate, check_batch_size, evaluation_batches, mix_seeds, training_batches
from .box_transforms import box_evaluation_transform, box_training_transform, collate_boxes
from .cached import cache_bytes, cached_at_scale, cached_images
from .image_set import Batch, Data, ImageSet, Sample
from .images import MAX_LEVEL, Unreadable, eight_bits, flatten_alpha, list_folder, list_images, read_image
from .sets import NAMED, open_data
from .splits.check import check_images, note_of_levels, without_files
from .splits.duplicates import Duplicates, find_duplicates
from .splits.fingerprints import Fingerprint, fingerprint, fingerprint_all
from .splits.grouped_split import conflicts, grouped_split, leakage, split_data
from .splits.groups import (
    SharedGroups,
    check_column,
    check_groups,
    count_groups,
    find_group_column,
    format_group_column,
    format_unnamed,
    joined_groups,
    shared_groups,
)
from .splits.name_groups import NameGroups, find_name_groups, format_name_groups
from .splits.summary import format_classes, format_imbalance, format_reasons, format_summary, summarise
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
    "NameGroups",
    "Sample",
    "SharedGroups",
    "Transform",
    "Unreadable",
    "box_evaluation_transform",
    "box_training_transform",
    "cache_bytes",
    "cached_at_scale",
    "cached_images",
    "check_batch_size",
    "check_column",
    "check_groups",
    "check_images",
    "collate_boxes",
    "conflicts",
    "count_groups",
    "eight_bits",
    "evaluation_batches",
    "evaluation_transform",
    "find_duplicates",
    "find_group_column",
    "find_name_groups",
    "fingerprint",
    "fingerprint_all",
    "flatten_alpha",
    "format_classes",
    "format_group_column",
    "format_imbalance",
    "format_name_groups",
    "format_reasons",
    "format_summary",
    "format_unnamed",
    "grouped_split",
    "joined_groups",
    "leakage",
    "list_folder",
    "list_images",
    "mix_seeds",
    "note_of_levels",
    "open_data",
    "read_image",
    "shared_groups",
    "split_data",
    "summarise",
    "training_batches",
    "training_transform",
    "without_files",
]

if not TYPE_CHECKING:
    __getattr__ = renamed_functions(
        __name__,
        {
            "check_shares": "check_batch_size",
            "hold_out": "split_data",
            "memory_of": "cache_bytes",
            "tell": "format_summary",
            "tell_classes": "format_classes",
            "tell_imbalance": "format_imbalance",
            "tell_reasons": "format_reasons",
            "tell_unnamed_groups": "format_group_column",
            "unnamed_groups": "find_group_column",
            "without": "without_files",
        },
    )
