"""Trained networks out of PyTorch, and back in as files that other programs run."""

from .onnx_export import OnnxExport, export_onnx
from .onnx_model import OnnxModel

__all__ = ["OnnxExport", "OnnxModel", "export_onnx"]
