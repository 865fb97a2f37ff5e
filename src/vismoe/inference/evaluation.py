"""Evaluates a network on images."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from vismoe.data import ImageSet
from vismoe.parallel import Mesh
from vismoe.tasks import Evaluation, Task, task_for_set, task_of

from .predictor import Predictor, open_network


def evaluate(
    model: nn.Module | str | Path,
    images: ImageSet | str | Path,
    batch_size: int | None = None,
    workers: int = 0,
    mesh: Mesh | None = None,
    task: Task | None = None,
) -> Evaluation:
    """Evaluates a network on images, in evaluation mode. Afterwards every module is in the mode that it was in before.
    The prediction of an ensemble is the mean of its members' probabilities.

    **Arguments:**

    - `model`: a network, or its source: a run folder, a model folder, an exported .onnx file, timm:NAME, hf:ORG/NAME,
      PRESET.TAG.
    - `images`: the images; or the name or path of a data set, whose validation split is used, or all its images if it
      has no splits.
    - `batch_size`: number of images per forward pass; default None: 256, for detectors 16.
    - `workers`: number of processes that prepare images; default 0: this process.
    - `mesh`: processes that share the work; all of them must call this function. Default: this process alone.
    - `task`: the task to evaluate; default: the network's. For classification, one or several labels per image are as
      in `images`.

    **Returns:** the evaluation.

    **Raises:** ValueError if there are no images, or the data set has classes that the network does not know.
    """
    model = model if isinstance(model, nn.Module) else open_network(str(model))
    if not isinstance(images, ImageSet):
        task = task or task_of(model)
        images = task.align_classes(task.open(str(images))).val
    if not len(images):
        raise ValueError("there are no images to evaluate on")
    mesh = Mesh() if mesh is None or mesh.size > len(images) else mesh
    task = task or task_for_set(model, images)
    predictor = Predictor(model, task, batch_size=task.largest_batch if batch_size is None else batch_size)
    predictor.task.check_model(predictor.model)
    scorer = predictor.task.scorer(images)
    load: dict[str, Tensor] = {}
    seconds = 0.0
    rounds = math.ceil(math.ceil(len(images) / mesh.size) / predictor.batch_size)  # of the process with most images
    for output in predictor.outputs(images, workers, (mesh.rank, mesh.size), rounds=rounds):
        scorer.update(output.places, output.outputs, output.batch)
        seconds += time.perf_counter() - output.started
        for name, calls in output.routing.layers.items():
            counts = torch.stack([call.load.cpu() for call in calls]).sum(0)
            load[name] = load[name] + counts if name in load else counts
    return scorer.evaluation(
        mesh.sum,
        images_per_second=len(images) / seconds,
        load={name: mesh.sum(counts).tolist() for name, counts in load.items()},
    )
