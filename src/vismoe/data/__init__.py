"""Images in: named sets and folders, transforms, batches in an order that can be had again."""

from .image_set import Data, ImageSet
from .images import Unreadable, flatten_alpha, list_images, read_image
from .pipeline import check_shares, evaluation_batches, evaluation_transform, training_batches, training_transform
from .seeds import mix_seeds
from .sets import NAMED, open_data
from .shrunk import memory_of, scaled, shrunk
from .splits.duplicates import Duplicates, find_duplicates
from .splits.fingerprints import Fingerprint, fingerprint, look
from .splits.grouped_split import conflicts, grouped_split, hold_out, leakage
from .splits.summary import summarise, tell, tell_imbalance
from .splits.survey import survey, without

__all__ = [
    "NAMED",
    "Data",
    "Duplicates",
    "Fingerprint",
    "ImageSet",
    "Unreadable",
    "check_shares",
    "conflicts",
    "evaluation_batches",
    "evaluation_transform",
    "find_duplicates",
    "fingerprint",
    "flatten_alpha",
    "grouped_split",
    "hold_out",
    "leakage",
    "list_images",
    "look",
    "memory_of",
    "mix_seeds",
    "open_data",
    "read_image",
    "scaled",
    "shrunk",
    "summarise",
    "survey",
    "tell",
    "tell_imbalance",
    "training_batches",
    "training_transform",
    "without",
]
