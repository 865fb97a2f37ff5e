"""What a network makes of images: what the linear map that gives its logits is handed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.data import Batch, ImageSet
from vismoe.inference import Predictor
from vismoe.moe.record import unwrap
from vismoe.weights import as_network
from vismoe.weights.huggingface.network import CLASSIFIERS

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels.flip(-1),
}


def features(
    model: nn.Module,
    images: ImageSet,
    batch_size: int = 64,
    workers: int = 0,
    views: Sequence[str] = ("plain",),
    preparation: Mapping[str, Any] | None = None,
    watch: Callable[[int, int], None] = lambda done, of: None,
) -> Float[Tensor, "N d"]:
    """The features of N images, in the set's order, float32, at evaluation. Leaves the network in the mode it was in.

    They are what the last linear map of the classifier is handed, for networks of timm, transformers and torchvision
    alike: `linear(features)` are the logits. Where there are two classifiers (distilled networks) it is the mean of
    what both are handed, as timm has it. A network without one (`num_classes=0`, transformers' bare models) gives its
    output: of transformers' the pooled one, else the class token, else the mean of the last hidden state.

    **Arguments:** `views`: of "plain" and "mirrored"; the features are the mean over these; `preparation`: what of
    `vismoe.weights.data_config` (input_size, mean, std, interpolation, crop_pct) is to differ. That of transformers'
    networks is what the folder says that they were loaded from, else what their class does; `watch`: is told after each
    batch how many images are done, and of how many.

    **Raises:** ValueError for unknown views and networks that give no single vector an image.
    """
    _check(views)
    predictor = Predictor(unwrap(model), batch_size=batch_size, preprocessing=preparation)

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        pixels = batch["image"]
        return torch.stack([_embed(network, VIEWS[view](pixels)) for view in views]).mean(0).cpu()

    vectors: list[Tensor] = []
    for output in predictor.outputs(images, workers, forward=forward):
        vectors.append(output.outputs)
        watch(sum(map(len, vectors)), len(images))
    return torch.cat(vectors).clone()  # no inference tensor: a head may be trained on them


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The linear maps that give a network's logits: one; of distilled networks two; without classes none."""
    model = as_network(model)
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
    if not handed and not isinstance(output, Tensor):
        raise ValueError(f"{type(model).__name__} has no classifier that is known: looked for {', '.join(CLASSIFIERS)}")
    found = (torch.stack(handed).mean(0) if handed else output).float()
    if found[0].numel() != found.shape[1]:
        raise ValueError(f"{type(model).__name__} gives features of shape {tuple(found.shape[1:])}, not one vector")
    # Of an ensemble, which has a row for each member of an image, the mean.
    return found.flatten(1).unflatten(0, (len(pixels), -1)).mean(1)


def _check(views: Sequence[str]) -> None:
    if not views or set(views) - set(VIEWS):
        raise ValueError(f"views={tuple(views)}: accepted are some of {', '.join(VIEWS)}")
