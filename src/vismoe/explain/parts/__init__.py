"""What an answer rests on: each patch, each expert, and the experts of each found box."""

from .ablation import WithoutExpert, without_each_expert, without_expert
from .attribution import Parts, parts_of_answer
from .boxes import BoxExperts, experts_of_boxes

__all__ = [
    "BoxExperts",
    "Parts",
    "WithoutExpert",
    "experts_of_boxes",
    "parts_of_answer",
    "without_each_expert",
    "without_expert",
]
