"""Detection: networks that find objects, their loss, and the decoding of their outputs into boxes."""

from .decode import PaddedDetections, decode, decode_padded
from .detections import PROBLEM_TYPE, Detections
from .detector import DETECTOR, Detector, make_detector
from .head import CentreHead, Outputs
from .loss import Targets, detection_loss, targets
from .neck import Neck

__all__ = [
    "DETECTOR",
    "PROBLEM_TYPE",
    "CentreHead",
    "Detections",
    "Detector",
    "Neck",
    "Outputs",
    "PaddedDetections",
    "Targets",
    "decode",
    "decode_padded",
    "detection_loss",
    "make_detector",
    "targets",
]
