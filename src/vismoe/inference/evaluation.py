"""Evaluation of a network on a set."""

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
    batch_size: int = 256,
    workers: int = 0,
    mesh: Mesh | None = None,
    task: Task | None = None,
) -> Evaluation:
    """Evaluates a network on a set, in evaluation mode. An ensemble answers with the mean of its members'
    probabilities. Every module is left in the mode that it was in.

    **Arguments:**

    - `model`: the network, or its source (a run folder, a model folder, an exported .onnx file, …).
    - `images`: the set; or the name or path of one, of which the validation split is used, or all where it has none.
    - `batch_size`: images of one forward pass, default 256; `workers`: processes that prepare images, default 0: this
      process.
    - `mesh`: processes that share the work; all of them call it. Default: this process alone.
    - `task`: the task to evaluate; default: the network's, or classification with as many labels an image as the set
      has.

    **Raises:** ValueError where the set is empty, or has classes that the network does not know.
    """
    model = model if isinstance(model, nn.Module) else open_network(str(model))
    if not isinstance(images, ImageSet):
        task = task or task_of(model)
        images = task.align_classes(task.open(str(images))).val
    if not len(images):
        raise ValueError("a set without images: nothing to evaluate")
    mesh = Mesh() if mesh is None or mesh.size > len(images) else mesh
    predictor = Predictor(model, task or task_for_set(model, images), batch_size=batch_size)
    predictor.task.check_model(predictor.model)
    scorer = predictor.task.scorer(images)
    load: dict[str, Tensor] = {}
    seconds = 0.0
    for output in predictor.outputs(images, workers, (mesh.rank, mesh.size)):
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
