"""What a network makes of pictures: what the linear map that gives its logits is handed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.data import ImageSet, evaluation_batches, evaluation_transform
from vismoe.moe.record import unwrap
from vismoe.training import data_config

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels.flip(-1),
}
CLASSIFIERS = ("classifier", "heads", "head", "fc")
"""Where transformers and torchvision keep what gives the logits; timm's networks say it themselves."""


@torch.no_grad()
def features(
    model: nn.Module,
    images: ImageSet,
    batch_size: int = 64,
    workers: int = 0,
    views: Sequence[str] = ("plain",),
    preparation: Mapping[str, Any] | None = None,
) -> Float[Tensor, "N d"]:
    """The features of N pictures, in the set's order, float32, at evaluation. Leaves the network in the mode it was in.

    They are what the last linear map of the classifier is handed, for networks of timm, transformers and torchvision
    alike: `linear(features)` are the logits. Where there are two classifiers (distilled networks) it is the mean of
    what both are handed, as timm has it. A network without one (`num_classes=0`, transformers' bare models) gives its
    output: of transformers' the pooled one, else the class token, else the mean of the last hidden state.

    **Arguments:** `views`: of "plain" and "mirrored"; the features are the mean over these; `preparation`: what of
    `vismoe.training.data_config` (input_size, mean, std, interpolation, crop_pct) is to differ. transformers' networks
    know only their size and channels; mean and std, which belong to their processor, are ImageNet's unless given.

    **Raises:** ValueError for unknown views and networks that give no single vector a picture.
    """
    _check(views)
    model = unwrap(model)
    was_training, device = model.training, next(model.parameters()).device
    transform = evaluation_transform(_preparation(model, preparation))
    model.eval()
    try:
        found = [
            torch.stack([_embed(model, VIEWS[view](pixels.to(device))) for view in views]).mean(0).cpu()
            for pixels, _ in evaluation_batches(images, transform, batch_size, workers)
        ]
    finally:
        model.train(was_training)
    return torch.cat(found)


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The linear maps that give a network's logits: one; of distilled networks two; without classes none."""
    model = getattr(model, "timm_model", model)  # transformers' wrapper
    if hasattr(model, "get_classifier"):
        found = cast(Any, model).get_classifier()
        tops = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
        return [linear for top in tops for linear in _last_linear(top)]
    tops = [top for name in CLASSIFIERS if isinstance(top := getattr(model, name, None), nn.Module)]
    return next((linear for top in tops if (linear := _last_linear(top))), [])


def _last_linear(top: nn.Module) -> list[nn.Module]:
    linear: list[nn.Module] = [module for module in top.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return linear[-1:]


def _embed(model: nn.Module, pixels: Tensor) -> Float[Tensor, "B d"]:
    heads, handed = classifiers(model), []
    hooks = [head.register_forward_pre_hook(lambda _, inputs: handed.append(inputs[0])) for head in heads]
    try:
        output = model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if len(handed) != len(heads):
        raise ValueError(f"the classifier of {type(model).__name__} was called {len(handed)} times, not {len(heads)}")
    found = (torch.stack(handed).mean(0) if handed else _pooled(model, output)).float()
    if found[0].numel() != found.shape[1]:
        raise ValueError(f"{type(model).__name__} gives features of shape {tuple(found.shape[1:])}, not one vector")
    return found.flatten(1)


def _pooled(model: nn.Module, output: Any) -> Tensor:
    """What a network without a classifier has to say of pictures."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "pooler_output", None) is not None:
        return cast(Tensor, output.pooler_output)
    if (hidden := getattr(output, "last_hidden_state", None)) is not None:
        if hidden.ndim == 4:
            return cast(Tensor, hidden.mean((2, 3)))
        of_class = any(name.endswith("cls_token") for name, _ in model.named_parameters())
        return cast(Tensor, hidden[:, 0] if of_class else hidden.mean(1))
    if getattr(model, "num_labels", None) == 0:
        return cast(Tensor, output.logits)
    raise ValueError(f"{type(model).__name__} has no classifier that is known: looked for {', '.join(CLASSIFIERS)}")


def _preparation(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    config = data_config(getattr(model, "timm_model", model))
    known: Any = getattr(model, "config", None)  # transformers'
    known = getattr(known, "vision_config", known)
    if (size := getattr(known, "image_size", None)) is not None:
        height, width = (size, size) if isinstance(size, int) else size
        channels = known.num_channels
        config |= {"input_size": (channels, height, width)}
        config |= {name: config[name][:channels] for name in ("mean", "std")}
    return config | dict(given or {})


def _check(views: Sequence[str]) -> None:
    if not views or set(views) - set(VIEWS):
        raise ValueError(f"views={tuple(views)}: accepted are some of {', '.join(VIEWS)}")
