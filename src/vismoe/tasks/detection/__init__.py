"""Detection: objects of an image as boxes with classes and scores."""

from .evaluation import BoxEvaluation, BoxScorer, ClassPrecision, check_coco_eval
from .predictions import BoxPrediction, FoundBox, box_predictions, coco_json, draw_predictions
from .report import write_report
from .task import Detection
from .truth import TrueBoxes, true_boxes

__all__ = [
    "BoxEvaluation",
    "BoxPrediction",
    "BoxScorer",
    "ClassPrecision",
    "Detection",
    "FoundBox",
    "TrueBoxes",
    "box_predictions",
    "check_coco_eval",
    "coco_json",
    "draw_predictions",
    "true_boxes",
    "write_report",
]
