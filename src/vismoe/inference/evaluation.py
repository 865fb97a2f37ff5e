"""How good a network is on images that it was not trained on."""

import time

import torch
from torch import Tensor, nn

from vismoe.data import ImageSet
from vismoe.parallel import World
from vismoe.tasks import Evaluation, Task, task_for_set

from .predictor import Predictor


def evaluate(
    model: nn.Module,
    images: ImageSet,
    batch_size: int = 256,
    workers: int = 0,
    world: World | None = None,
    task: Task | None = None,
) -> Evaluation:
    """Runs a network over a set, once, at evaluation: of an ensemble, the mean of its members' probabilities. Leaves
    each of its modules in the mode it was in.

    **Arguments:**

    - `model`, `images`: the network and the set.
    - `batch_size`: images of one forward pass, default 256; `workers`: processes that prepare images, default none.
    - `world`: the processes that all call it share the work.
    - `task`: what the network is judged by; by default classification, with as many labels an image as the set has, or
      what the network says.

    **Raises:** ValueError where the set is empty.
    """
    if not len(images):
        raise ValueError("a set without images: nothing to evaluate")
    world = World() if world is None or world.size > len(images) else world
    predictor = Predictor(model, task or task_for_set(model, images), batch_size=batch_size)
    predictor.task.check_model(predictor.model)
    scorer = predictor.task.scorer(images)
    load: dict[str, Tensor] = {}
    seconds = 0.0
    for output in predictor.outputs(images, workers, (world.rank, world.size)):
        scorer.update(output.places, output.outputs, output.batch)
        seconds += time.perf_counter() - output.started
        for name, calls in output.routing.layers.items():
            counts = torch.stack([call.load.cpu() for call in calls]).sum(0)
            load[name] = load[name] + counts if name in load else counts
    return scorer.evaluation(
        world.sum,
        images_per_second=len(images) / seconds,
        load={name: world.sum(counts).tolist() for name, counts in load.items()},
    )
