"""Images in: named sets and folders, transforms, batches in an order that can be had again."""

from .pipeline import evaluation_batches, evaluation_transform, flatten_alpha, training_batches, training_transform
from .sets import Data, ImageSet, list_images, open_data, read_image

__all__ = [
    "Data",
    "ImageSet",
    "evaluation_batches",
    "evaluation_transform",
    "flatten_alpha",
    "list_images",
    "open_data",
    "read_image",
    "training_batches",
    "training_transform",
]
