"""Sparse vision transformers (Vision Mixture-of-Experts) for any PyTorch code. `__all__` is the public interface."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vismoe.kernels import kernels_in_use
from vismoe.moe import (
    ExpertChoiceRouter,
    HashRouter,
    ImageRouter,
    LowRankExperts,
    MLPExperts,
    MLPStructure,
    MoE,
    RandomRouter,
    SigmoidRouter,
    SoftRouter,
    TopKRouter,
    condition,
    rebalance,
    record,
    register_mlp,
)
from vismoe.vit import densify, optimize, upcycle
from vismoe.weights import create_model, list_models, load, save

from . import detection, weights

if TYPE_CHECKING:
    from vismoe.adapt import finetune
    from vismoe.deploy import export_onnx
    from vismoe.inference import Predictor, evaluate, predict
    from vismoe.parallel.clipping import clip_grad_norm_
    from vismoe.parallel.sharding import parallelize
    from vismoe.recipes import train
    from vismoe.scale import estimate

__version__ = "0.1.0"

__all__ = [
    "ExpertChoiceRouter",
    "HashRouter",
    "ImageRouter",
    "LowRankExperts",
    "MLPExperts",
    "MLPStructure",
    "MoE",
    "Predictor",
    "RandomRouter",
    "SigmoidRouter",
    "SoftRouter",
    "TopKRouter",
    "clip_grad_norm_",
    "condition",
    "create_model",
    "densify",
    "detection",
    "estimate",
    "evaluate",
    "export_onnx",
    "finetune",
    "kernels_in_use",
    "list_models",
    "load",
    "optimize",
    "parallelize",
    "predict",
    "rebalance",
    "record",
    "register_mlp",
    "save",
    "train",
    "upcycle",
    "weights",
]

# Names that need more than torch, timm, safetensors and jaxtyping, or seconds, are imported at their first use.
_LATER = {
    "Predictor": "vismoe.inference",
    "clip_grad_norm_": "vismoe.parallel.clipping",
    "estimate": "vismoe.scale",
    "evaluate": "vismoe.inference",
    "export_onnx": "vismoe.deploy",
    "finetune": "vismoe.adapt",
    "parallelize": "vismoe.parallel.sharding",
    "predict": "vismoe.inference",
    "train": "vismoe.recipes",
}

_EXTRA = {"clip_grad_norm_": "", "estimate": "", "export_onnx": "export", "parallelize": ""}
_MODULES: dict[str, tuple[str, ...]] = {
    "": (),
    "train": ("matplotlib", "PIL", "rich", "scipy", "sklearn", "torchmetrics", "torchvision", "tyro"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}
"""Modules of each extra. They are checked at once, so that a missing one does not stop a training after hours."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'vismoe' has no attribute {name!r}")
    extra = _EXTRA.get(name, "train")
    if missing := [module for module in _MODULES[extra] if find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"vismoe.{name} needs {', '.join(missing)}: pip install 'vismoe[{extra}]'", name=missing[0]
        )
    return getattr(import_module(_LATER[name]), name)
