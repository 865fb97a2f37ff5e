"""Networks without one expert: what changes if its outputs are 0."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vismoe.data import Batch, ImageSet
from vismoe.inference import Predictor
from vismoe.moe import MoE, Plan, Routing, SoftPlan
from vismoe.moe.record import layers_of

from ..analysis import Watch
from ..tokens import short_name

IMAGES = 200
"""Number of images on which the score without each expert is measured."""


@dataclass(frozen=True)
class WithoutExpert:
    """The score of a network without one expert.

    - `layer`: name of the layer.
    - `expert`: number of the expert.
    - `score`: the task's primary metric; larger is better.
    - `change`: the score minus that of the whole network.
    - `loss_change`: the same of the loss, the mean over images; None for a task whose evaluation has none.
    """

    layer: str
    expert: int
    score: float
    change: float
    loss_change: float | None = None


@contextmanager
def without_expert(layer: MoE, expert: int) -> Iterator[None]:
    """Context in which the outputs of one expert of a layer are 0. Its tokens go on through the residual connection;
    they do not go to another expert."""

    def zero(router: nn.Module, inputs: Any, routing: Routing) -> Routing:
        return replace(routing, plan=_without(routing.plan, expert))

    hook = layer.router.register_forward_hook(zero)
    try:
        yield
    finally:
        hook.remove()


def _without(plan: Plan, expert: int) -> Plan:
    if isinstance(plan, SoftPlan):
        combine = plan.combine.clone()
        combine[:, :, expert] = 0
        return replace(plan, combine=combine)
    end = int(plan.count[: expert + 1].sum())
    weight: Tensor = plan.weight.clone()
    weight[end - int(plan.count[expert]) : end] = 0
    return replace(plan, weight=weight)


def without_each_expert(
    predictor: Predictor, images: ImageSet, most: int = IMAGES, watch: Watch | None = None
) -> tuple[float, list[WithoutExpert]]:
    """Evaluates a network without each of its experts, one after the other.

    **Arguments:**

    - `predictor`: the network.
    - `images`: images with labels.
    - `most`: number of images; of more, evenly spaced ones are taken. Default 200.
    - `watch`: called with the number of evaluations done, and of all; default None.

    **Returns:** the score of the whole network on these images, and that without each expert, layer by layer.

    **Raises:** ValueError if there are no images or no labels.
    """
    if not len(images):
        raise ValueError("there are no images to evaluate on")
    if images.labels.ndim == 2 and not images.labels.shape[1]:
        raise ValueError("the images have no labels: the score without an expert needs a labelled data set")
    places = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long().unique().tolist()
    chosen = images.subset(places)
    prepared = [predictor.prepare(chosen.sample(index)) for index in range(len(chosen))]
    size = predictor.batch_size
    batches = [predictor.collate(prepared[start : start + size]) for start in range(0, len(prepared), size)]
    layers: list[tuple[str, Any]] = list(layers_of(predictor.model).items())
    total, total_loss = _score(predictor, chosen, batches, None)
    rows: list[WithoutExpert] = []
    for name, layer in layers:
        for expert in range(layer.router.num_experts):
            score, loss = _score(predictor, chosen, batches, (layer, expert))
            loss_change = None if loss is None or total_loss is None else loss - total_loss
            rows.append(WithoutExpert(short_name(name), expert, score, score - total, loss_change))
            if watch is not None:
                watch(len(rows), sum(each.router.num_experts for _, each in layers))
    return total, rows


def _score(
    predictor: Predictor, images: ImageSet, batches: Sequence[Batch], missing: tuple[MoE, int] | None
) -> tuple[float, float | None]:
    """The score, and the loss if the task has one."""

    def forward(model: nn.Module, batch: Batch) -> Any:
        if missing is None:
            return predictor.task.forward(model, batch)
        with without_expert(*missing):
            return predictor.task.forward(model, batch)

    scorer, start = predictor.task.scorer(images), 0
    for batch in batches:
        number = len(batch["image"])
        scorer.update(torch.arange(start, start + number), predictor.run(batch, forward), batch)
        start += number
    evaluation = scorer.evaluation(lambda tensor: tensor, 1.0, {})
    return evaluation.score, evaluation.metrics.get("loss")
