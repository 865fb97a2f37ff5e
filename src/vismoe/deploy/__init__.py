"""Exports trained networks from PyTorch to files that other programs run."""

from .onnx_export import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
