"""The part of each patch and each expert in the answer for one image: what the answer loses without it."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vismoe.data import Batch, Sample
from vismoe.inference import Predictor
from vismoe.moe.record import layers_of
from vismoe.tasks import Labels
from vismoe.vit import mean_of_images

from ..tokens import short_name
from .ablation import without_expert

REGIONS = 16
"""Most regions along a side: larger grids of patches are covered in squares of several patches."""
BATCH = 32
"""Perturbed images per forward pass."""


@dataclass(frozen=True)
class Parts:
    """What the answer for one image rests on. A part is the fall of the answer's log-odds, log(p / (1 − p)), without
    it; a negative one speaks against the answer.

    - `target`: number of the class that was answered.
    - `log_odds`: of the whole network for the whole image.
    - `patches`: part of each patch, or of squares of patches, which is covered by the mean colour; None without captum.
    - `experts`: for each sparse layer, the part of each expert, whose outputs become 0.
    """

    target: int
    log_odds: float
    patches: Float[Tensor, "rows columns"] | None
    experts: dict[str, Float[Tensor, " E"]]


def parts_of_answer(predictor: Predictor, sample: Sample, grid: tuple[int, int]) -> Parts:
    """Covers one patch after the other, and leaves out one expert after the other.

    **Arguments:**

    - `predictor`: a classifier.
    - `sample`: a prepared image, as `Predictor.prepare` returns it.
    - `grid`: (rows, columns) of patches.

    **Raises:** ValueError for a network that is no classifier.
    """
    if not isinstance(predictor.task, Labels):
        raise ValueError(f"the task of this model is {predictor.task.name}: parts of an answer need a classifier")
    batch = predictor.collate([sample])
    target = int(_scores(predictor, batch)[0].argmax())
    whole = float(_log_odds(predictor, batch, target))
    experts = {}
    for name, layer in layers_of(predictor.model).items():
        router: Any = layer.router
        parts = [whole - float(_log_odds(predictor, batch, target, (layer, e))) for e in range(router.num_experts)]
        experts[short_name(name)] = torch.tensor(parts)
    patches = _parts_of_patches(predictor, batch, target, grid) if find_spec("captum") is not None else None
    return Parts(target, whole, patches, experts)


def _parts_of_patches(predictor: Predictor, batch: Batch, target: int, grid: tuple[int, int]) -> Tensor:
    pixels = batch["image"]
    regions, number = _regions(grid, (pixels.shape[2], pixels.shape[3]))
    captum = import_module("captum.attr")  # optional, and its import takes a second
    ablation = captum.FeatureAblation(lambda images: _log_odds(predictor, {"image": images}, target))
    parts = ablation.attribute(
        pixels,
        baselines=0,  # the mean colour
        feature_mask=regions.to(pixels.device)[None, None],
        perturbations_per_eval=BATCH if _is_independent(predictor.model) else 1,
    )
    of_region = torch.empty(number[0] * number[1])
    of_region[regions.flatten()] = parts[0, 0].flatten().float().cpu()
    return of_region.view(number)


def _regions(grid: tuple[int, int], size: tuple[int, int]) -> tuple[Int[Tensor, "H W"], tuple[int, int]]:
    """The number of each pixel's region, and the number of regions down and across."""
    patches = -(-max(grid) // REGIONS)
    along = []
    for pixels, count in zip(size, grid, strict=True):
        along.append(torch.arange(pixels) // (-(-pixels // count) * patches))
    rows, columns = (int(each[-1]) + 1 for each in along)
    return along[0][:, None] * columns + along[1], (rows, columns)


def _is_independent(model: nn.Module) -> bool:
    """Whether an image's output is the same whatever other images are in its batch."""
    routers: list[Any] = [layer.router for layer in layers_of(model).values()]
    return all(each.groups_by_image or getattr(each, "eval_capacity_factor", "none") == "none" for each in routers)


def _scores(predictor: Predictor, batch: Batch, missing: tuple[Any, int] | None = None) -> Tensor:
    """Returns logits (B, K). An ensemble's are those of its members' mean probabilities. `missing`: an expert whose
    outputs are 0."""

    def forward(model: nn.Module, batch: Batch) -> Any:
        if missing is None:
            return predictor.task.forward(model, batch)
        with without_expert(*missing):
            return predictor.task.forward(model, batch)

    assert isinstance(predictor.task, Labels)
    outputs = predictor.run(batch, forward).clone()  # outside inference mode, as captum computes with it
    return mean_of_images(outputs, len(batch["image"]), predictor.task.probability)


def _log_odds(predictor: Predictor, batch: Batch, target: int, missing: tuple[Any, int] | None = None) -> Tensor:
    logits = _scores(predictor, batch, missing)
    assert isinstance(predictor.task, Labels)
    if predictor.task.probability == "sigmoid" or logits.shape[1] == 1:
        return logits[:, target]
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1)
    return logits[:, target] - others.logsumexp(1)
