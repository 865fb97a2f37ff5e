"""Detection: objects of an image as boxes with classes and scores."""

from .evaluation import BoxEvaluation, BoxScorer, ClassPrecision, check_coco_eval
from .report import write_report
from .truth import TrueBoxes, true_boxes

__all__ = ["BoxEvaluation", "BoxScorer", "ClassPrecision", "TrueBoxes", "check_coco_eval", "true_boxes", "write_report"]
