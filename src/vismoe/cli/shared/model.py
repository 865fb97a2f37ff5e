"""What MODEL means on the command line."""

from pathlib import Path

import torch
from torch import nn

from vismoe import create_model, list_models
from vismoe.adapt.start import FOLDER, HUB, TIMM, open_trained, set_image_size
from vismoe.training import Run
from vismoe.weights import load_network
from vismoe.weights.folders.layout import ONNX
from vismoe.weights.published import published_by

from .notes import note


def open_resized(name: str, image_size: int | None) -> nn.Module:
    """As `open_model`; taking images of another size than its own where that is said."""
    model = open_model(name)
    if image_size is not None:
        set_image_size(model, image_size, name)
    return model


def open_model(name: str, num_classes: int | None = None, exported: bool = False) -> nn.Module:
    """A run folder, a model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or a preset, which has random weights and says
    so; an `exported` file too where its answers are enough.

    **Raises:** ValueError, FileNotFoundError where it is none of these.
    """
    if exported and name.endswith(ONNX):
        from vismoe.weights.exported.onnx_model import OnnxModel  # needs an extra of its own

        return OnnxModel(name)
    if name.startswith((HUB, TIMM, FOLDER)) or published_by(name):
        return open_trained(name)
    if Path(name).exists():
        run = Run.of(name)
        if run is not None and not run.has_model:
            raise FileNotFoundError(f"{run.path} has no model yet: its training goes on with --resume auto")
        return load_network(name)
    if "/" in name or name.endswith(".safetensors") or not name.startswith("vmoe"):
        raise FileNotFoundError(f"{name}: no such run or model folder, and no preset (`vismoe models` lists those)")
    if name not in list_models():
        create_model(name)
    note(f"{name} is a preset: its weights are random")
    torch.manual_seed(0)
    return create_model(name, num_classes=1000 if num_classes is None else num_classes).eval()
