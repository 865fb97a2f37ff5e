"""Exported .onnx files, used like networks."""
