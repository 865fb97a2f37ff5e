"""Features of images: the input of the classifier, the linear layer that computes the logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.data import Batch, ImageSet
from vismoe.data.box_transforms import LISTED
from vismoe.detection import Detector
from vismoe.inference import Predictor
from vismoe.kernels import PackedLinear
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
    """Computes the features of N images, in evaluation mode. The network's mode is restored.

    Features are the input of the classifier's last linear layer: `linear(features)` are the logits, for networks of
    timm, transformers and torchvision. With two classifiers (distilled networks) they are the mean of both inputs, as
    in timm. A network without classifier (`num_classes=0`, transformers' base models) returns them; of transformers'
    the pooled output is used, else the class token, else the mean of the last hidden state.

    **Arguments:**

    - `model`: the network.
    - `images`: data set of N images.
    - `batch_size`: images per forward pass; default 64.
    - `workers`: number of data loading worker processes; default 0: the current process.
    - `views`: views of each image, "plain", "mirrored" or both, whose features are averaged; default "plain".
    - `preparation`: entries that replace those of `vismoe.weights.data_config` (input_size, mean, std, interpolation,
      crop_pct); default: none.
    - `watch`: called after each batch with the number of images done and the total; default: no call.

    **Returns:** (N, d) float32, in the order of `images`.

    **Raises:** ValueError for unknown views, and for networks that do not return one vector per image, as detectors.
    """
    _check_views(views)
    check_features(model)
    further = {name: value for name, value in images.further.items() if name not in LISTED}
    images = replace(images, further=further)  # the numbers of boxes differ, so they cannot be stacked
    predictor = Predictor(unwrap(model), batch_size=batch_size, preprocessing=preparation)

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        pixels = batch["image"]
        return torch.stack([embed_pixels(network, VIEWS[view](pixels)) for view in views]).mean(0).cpu()

    vectors: list[Tensor] = []
    for output in predictor.outputs(images, workers, forward=forward):
        vectors.append(output.outputs)
        watch(sum(map(len, vectors)), len(images))
    return torch.cat(vectors).clone()  # not an inference tensor: a head may be trained on it


def check_features(model: nn.Module) -> None:
    """Raises ValueError for a detector, which has no features of whole images."""
    if isinstance(unwrap(model), Detector):
        raise ValueError(
            "a detector has features of cells, not one vector per image: name a classifier, or the network that the "
            "detector was made of (in Python its attribute trunk)"
        )


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The linear layers that compute a network's logits: one; two in distilled networks; none without classes."""
    model = as_network(model)
    if hasattr(model, "get_classifier"):
        classifier = cast(Any, model).get_classifier()
        tops = list(classifier) if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]
        return [linear for top in tops for linear in _last_linear(top)]
    tops = [top for name in CLASSIFIERS if isinstance(top := getattr(model, name, None), nn.Module)]
    return next((linear for top in tops if (linear := _last_linear(top))), [])


def _last_linear(top: nn.Module) -> list[nn.Module]:
    linear: list[nn.Module] = [
        module for module in top.modules() if isinstance(module, nn.Linear | nn.Conv2d | PackedLinear)
    ]
    return linear[-1:]


def embed_pixels(model: nn.Module, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B d"]:
    """The features of a batch, see `features`. No other thread may run the network meanwhile.

    **Arguments:**

    - `model`: the network, in evaluation mode.
    - `pixels`: images as the network takes them.

    **Raises:** ValueError for networks that do not return one vector per image.
    """
    heads, head_inputs = classifiers(model), []
    hooks = [head.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0])) for head in heads]
    try:
        output = model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if len(head_inputs) != len(heads):
        raise ValueError(
            f"the classifier of {type(model).__name__} was called {len(head_inputs)} times, not {len(heads)}"
        )
    if not head_inputs and not isinstance(output, Tensor):
        raise ValueError(f"{type(model).__name__} has no known classifier: accepted names are {', '.join(CLASSIFIERS)}")
    vectors = (torch.stack(head_inputs).mean(0) if head_inputs else output).float()
    if vectors[0].numel() != vectors.shape[1]:
        raise ValueError(
            f"{type(model).__name__} gives features of shape {tuple(vectors.shape[1:])}, not one vector per image"
        )
    # An ensemble returns a row per member: their mean.
    return vectors.flatten(1).unflatten(0, (len(pixels), -1)).mean(1)


def _check_views(views: Sequence[str]) -> None:
    if not views or set(views) - set(VIEWS):
        raise ValueError(f"views={tuple(views)}: accepted are some of {', '.join(VIEWS)}")
