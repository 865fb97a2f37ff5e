"""Converts parameters of google-research/vmoe (JAX) to models, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from vismoe.moe import BalancedRouter, TopKRouter
from vismoe.moe.record import unwrap
from vismoe.vit import SparseVisionTransformer

from ..registry import ANY_SHAPE
from .config import CLASSIFIERS, is_evaluation, read_config
from .places import places


@torch.no_grad()
def from_reference(params: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
    """Builds a model from parameters and configuration of the reference. Its capacity and groups apply in both modes.

    Fields with the dtype of computation are ignored: the model is in float32.

    **Arguments:**

    - `params`: {"/"-joined name: array}, with or without a leading "params/".
    - `config`: a dictionary with `model_class`; `model`, the keyword arguments of VisionTransformerMoe or
      VisionTransformerMoeEnsemble; `deterministic`, whether it is for evaluation, default True; and `image_size`
      (vismoe's), height and width in pixels, required if a learned position embedding is not square.

    **Returns:** the model, in evaluation mode if deterministic. Its input is (B, 3, H, W), the reference's is NHWC;
    without a learned position embedding any multiple of the patch size. An ensemble returns a row of logits per member,
    [image 0 member 0, image 0 member 1, …], unless `predictions` is set to "mean".

    **Raises:** ValueError, with the reference's name, for fields or parameters that are missing, unknown or of another
    shape.
    """
    arrays = {name.removeprefix("params/"): np.asarray(array) for name, array in params.items()}
    arguments = read_config(config, {name: array.shape for name, array in arrays.items()})
    model: SparseVisionTransformer = timm.create_model(ANY_SHAPE, **arguments)
    views = {name: view(model.get_parameter(path)) for name, (path, view) in places(model).items()}
    if missing := sorted(set(views) - set(arrays)):
        raise ValueError(f"parameters that the configuration requires are missing: {', '.join(missing)}")
    if unexpected := sorted(set(arrays) - set(views)):
        raise ValueError(f"the configuration does not have the parameters {', '.join(unexpected)}")
    for name, view in views.items():
        if arrays[name].shape != view.shape:
            expected = f"the configuration requires {tuple(view.shape)}"
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, but {expected}")
        view.copy_(torch.tensor(arrays[name].astype(np.float32, copy=False)))
    return model.train(not is_evaluation(config))


@torch.no_grad()
def to_reference(model: nn.Module) -> dict[str, np.ndarray]:
    """Returns a model's parameters by the reference's names: the bit-exact inverse of `from_reference`.

    **Arguments:**

    - `model`: a network from `from_reference`, or any `SparseVisionTransformer` (vismoe's presets) that the reference
      can build: dense, token choice, Expert Choice, soft or an ensemble, with tanh GELU, as the presets of the paper's
      sizes.

    **Returns:** {"/"-joined name: array}, copies; without a leading "params/".

    **Raises:** ValueError for a model with parts that the reference lacks, or without some that it has.
    """
    model = unwrap(model)
    if not isinstance(model, SparseVisionTransformer):
        raise ValueError(
            f"{type(model).__name__} is not a SparseVisionTransformer: only those can be converted to the reference"
        )
    table, parameters = places(model), dict(model.named_parameters())
    if unknown := _differences(model) + sorted(set(parameters) - {path for path, _ in table.values()}):
        raise ValueError(f"the reference does not have {', '.join(unknown)} of this model")
    if missing := sorted({path for path, _ in table.values()} - set(parameters)):
        raise ValueError(f"this model lacks {', '.join(missing)} of the reference")
    views = {name: view(parameters[path].detach()) for name, (path, view) in table.items()}
    # NumPy has no bfloat16; float32 is exact.
    arrays = {name: view.float() if view.dtype == torch.bfloat16 else view for name, view in views.items()}
    return {name: np.array(view.cpu().numpy(), order="C") for name, view in arrays.items()}


def _differences(model: SparseVisionTransformer) -> list[str]:
    """Parts of a model that compute something else than the reference would with the same parameters."""
    differences = []
    pooling = model.global_pool, model.has_class_token
    if pooling not in [(classifier["global_pool"], classifier["class_token"]) for classifier in CLASSIFIERS.values()]:
        differences.append("global_pool={!r} with class_token={}".format(*pooling))
    if model.has_class_token and model.no_embed_class and model.pos_embed is not None:
        differences.append("no_embed_class=True")
    probe = torch.linspace(-3, 3, 7)
    for path, module in model.named_modules():
        activation = getattr(module, "act", getattr(module, "activation", None))
        if activation is not None and not torch.equal(activation(probe), F.gelu(probe, approximate="tanh")):
            differences.append(f"{path}'s activation (only tanh GELU)")
        if isinstance(module, TopKRouter) and module.combine != "gate":
            differences.append(f"{path}'s combine={module.combine!r}")
        if isinstance(module, BalancedRouter) and module.balance_bias is not None and bool(module.balance_bias.any()):
            differences.append(f"{path}.balance_bias")
    return differences
