"""Images in: named sets and folders, transforms, batches in an order that can be had again."""

from .pipeline import (
    evaluation_batches,
    evaluation_transform,
    flatten_alpha,
    mix_seeds,
    training_batches,
    training_transform,
)
from .sets import NAMED, Data, ImageSet, list_images, open_data, read_image

__all__ = [
    "NAMED",
    "Data",
    "ImageSet",
    "evaluation_batches",
    "evaluation_transform",
    "flatten_alpha",
    "list_images",
    "mix_seeds",
    "open_data",
    "read_image",
    "training_batches",
    "training_transform",
]
