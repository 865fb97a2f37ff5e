"""Models from parameters of google-research/vmoe (JAX), and back."""

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
    """Builds a model from parameters of the reference, with the capacity and groups of its configuration in both modes.

    Fields for the types in which the reference computes (dtype) are ignored: the model is in float32, which its caller
    may change.

    **Arguments:**

    - `params`: {"/"-joined name: array}, with or without a leading "params/".
    - `config`: `model_class`, and `model`, the keyword arguments of its VisionTransformerMoe or
      VisionTransformerMoeEnsemble; `deterministic` (default true): evaluation or training; `image_size` (ours): height
      and width in pixels, needed where a learned position embedding is not a square.

    **Returns:** the model, in evaluation mode where deterministic. Its images are (B, 3, H, W), the reference's are
    NHWC; without a learned position embedding, of any size that patches tile. An ensemble's logits have a row a member,
    [image 0 member 0, image 0 member 1, …], until its `predictions` are set to "mean".

    **Raises:** ValueError for a configuration or parameters that are missing, not understood or of another shape, by
    the reference's name.
    """
    arrays = {name.removeprefix("params/"): np.asarray(array) for name, array in params.items()}
    arguments = read_config(config, {name: array.shape for name, array in arrays.items()})
    model: SparseVisionTransformer = timm.create_model(ANY_SHAPE, **arguments)
    views = {name: view(model.get_parameter(path)) for name, (path, view) in places(model).items()}
    if missing := sorted(set(views) - set(arrays)):
        raise ValueError(f"the configuration asks for parameters that are missing: {', '.join(missing)}")
    if unexpected := sorted(set(arrays) - set(views)):
        raise ValueError(f"the configuration has no place for the parameters {', '.join(unexpected)}")
    for name, view in views.items():
        if arrays[name].shape != view.shape:
            expected = f"the configuration asks for {tuple(view.shape)}"
            raise ValueError(f"parameter {name} has shape {arrays[name].shape}, but {expected}")
        view.copy_(torch.tensor(arrays[name].astype(np.float32, copy=False)))
    return model.train(not is_evaluation(config))


@torch.no_grad()
def to_reference(model: nn.Module) -> dict[str, np.ndarray]:
    """The parameters of a model under the reference's names: the inverse of `from_reference`, bit for bit.

    **Arguments:** `model`: made by `from_reference`, or any `SparseVisionTransformer` (vismoe's presets) that the
    reference can build: dense, token choice, Expert Choice, soft or an ensemble, with tanh GELU, as the presets of the
    paper's sizes.

    **Returns:** {"/"-joined name: array}, copies; without a leading "params/".

    **Raises:** ValueError for a model with parts that the reference does not have, or without some that it has.
    """
    model = unwrap(model)
    if not isinstance(model, SparseVisionTransformer):
        raise ValueError(
            f"{type(model).__name__} is no SparseVisionTransformer: only those can be written as the reference's"
        )
    table, parameters = places(model), dict(model.named_parameters())
    if unknown := _differences(model) + sorted(set(parameters) - {path for path, _ in table.values()}):
        raise ValueError(f"the reference has nothing like {', '.join(unknown)} of this model")
    if missing := sorted({path for path, _ in table.values()} - set(parameters)):
        raise ValueError(f"the reference has {', '.join(missing)}, which this model lacks")
    views = {name: view(parameters[path].detach()) for name, (path, view) in table.items()}
    # NumPy has no bfloat16, which float32 holds exactly.
    arrays = {name: view.float() if view.dtype == torch.bfloat16 else view for name, view in views.items()}
    return {name: np.array(view.cpu().numpy(), order="C") for name, view in arrays.items()}


def _differences(model: SparseVisionTransformer) -> list[str]:
    """What a model computes differently from the reference with the same parameters."""
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
            differences.append(f"{path}'s activation, in place of tanh GELU,")
        if isinstance(module, TopKRouter) and module.combine != "gate":
            differences.append(f"{path}'s combine={module.combine!r}")
        if isinstance(module, BalancedRouter) and module.balance_bias is not None and bool(module.balance_bias.any()):
            differences.append(f"{path}.balance_bias")
    return differences
