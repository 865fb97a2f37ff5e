"""Features of a frozen network, and classifiers on them: few-shot, linear classifier, nearest neighbours."""

from .embeddings import check_embeddings, class_names, file_names, open_images, whole, write_embeddings
from .features import VIEWS, check_features, classifiers, features
from .fewshot import FewShot, check_shots, draw, few_shot
from .neighbours import nearest_neighbours
from .probe import linear_probe
from .ridge import L2_GRID, ridge

__all__ = [
    "L2_GRID",
    "VIEWS",
    "FewShot",
    "check_embeddings",
    "check_features",
    "check_shots",
    "class_names",
    "classifiers",
    "draw",
    "features",
    "few_shot",
    "file_names",
    "linear_probe",
    "nearest_neighbours",
    "open_images",
    "ridge",
    "whole",
    "write_embeddings",
]
