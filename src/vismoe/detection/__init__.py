"""Detection: networks that find objects, their loss, and the decoding of their outputs into boxes."""

from .detections import Detections

__all__ = ["Detections"]
