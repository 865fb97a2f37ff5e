"""A person's own pictures: what a frozen network makes of them, and what can be learned from that."""

from .embeddings import check_embeddings, class_names, file_names, open_images, whole, write_embeddings
from .features import VIEWS, classifiers, features
from .fewshot import FewShot, check_shots, draw, few_shot
from .finetune import Finetuned, finetune
from .freezing import freeze
from .neighbours import nearest_neighbours
from .options import Options
from .probe import linear_probe
from .ridge import L2_GRID, ridge
from .start import open_trained

__all__ = [
    "L2_GRID",
    "VIEWS",
    "FewShot",
    "Finetuned",
    "Options",
    "check_embeddings",
    "check_shots",
    "class_names",
    "classifiers",
    "draw",
    "features",
    "few_shot",
    "file_names",
    "finetune",
    "freeze",
    "linear_probe",
    "nearest_neighbours",
    "open_images",
    "open_trained",
    "ridge",
    "whole",
    "write_embeddings",
]
