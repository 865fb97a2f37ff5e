"""Fine-tuning of detectors."""

from .adaptation import DetectorAdaptation

__all__ = ["DetectorAdaptation"]
