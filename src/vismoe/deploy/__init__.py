"""Export of trained networks to ONNX files."""

from .onnx_export import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
