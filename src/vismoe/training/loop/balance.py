"""Balances the experts of an EMA of the weights, and evaluates it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vismoe.data import Batch, ImageSet, evaluation_batches
from vismoe.inference import evaluate
from vismoe.moe import biased_routers, keeping_balance, rebalance
from vismoe.parallel import free_memory
from vismoe.tasks import Evaluation
from vismoe.vit import evaluating
from vismoe.weights import data_config

from ..step import Trainer

REBALANCE_BATCHES = 32
"""Number of training batches that balance the experts of an EMA before it is evaluated or saved."""


class AverageBalance:
    """Balances the experts of the EMA before it is evaluated or saved, using training images transformed as in
    evaluation. The prepared batches are kept in memory, unless they need more than a quarter of the free memory. (A
    cache of images would not help data workers: what they decode is lost when they end.)

    **Arguments:**

    - `trainer`: the trainer.
    - `images`: the training split.
    """

    def __init__(self, trainer: Trainer, images: ImageSet):
        self.trainer, self.images = trainer, images
        self._kept: list[Batch] | None = None

    def update(self) -> None:
        """Adapts the balancing biases of the EMA to its weights."""
        state, task, mesh = self.trainer.state, self.trainer.task, self.trainer.mesh
        network = state.evaluated
        if state.average is None or not biased_routers(network):
            return
        batches = self._prepare() if self._kept is None else self._kept
        frozen = [name for name, router in biased_routers(state.model).items() if router.is_frozen]
        with evaluating(network):
            rebalance(network, map(self.trainer.on_device, batches), task.forward, mesh.sum, skip=frozen)

    def evaluate(self, images: ImageSet) -> Evaluation:
        """Evaluates the weights that would be saved now on `images`. The experts of an EMA are balanced for the
        evaluation; afterwards the balance is restored, so that training does not depend on the number of
        evaluations."""
        trainer, network = self.trainer, self.trainer.state.evaluated
        trainer.mesh.broadcast(network.buffers())  # batch norm statistics differ between processes
        with keeping_balance(network):
            self.update()
            workers = trainer.recipe.workers
            return evaluate(network, images, workers=workers, mesh=trainer.mesh, task=trainer.task)

    def _prepare(self) -> Iterator[Batch]:
        """This process's share of the batches; keeps them if there is enough memory."""
        recipe, task, mesh = self.trainer.recipe, self.trainer.task, self.trainer.mesh
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(recipe.seed))
        number = min(len(order), REBALANCE_BATCHES * recipe.batch_size)
        number -= number % mesh.size  # the same for each process
        places = order[:number][mesh.rank :: mesh.size].tolist()
        transform = task.evaluation_transform(data_config(self.trainer.state.evaluated))
        batches = evaluation_batches(
            self.images.subset(places), transform, recipe.batch_size // mesh.size, recipe.workers, task.collate
        )
        kept: list[Batch] | None = []
        for place, batch in enumerate(batches):
            if place == 0 and len(batches) * _bytes_of(batch) > free_memory(torch.device("cpu")) / 4:
                kept = None
            if kept is not None:  # tensors of data workers are copied: their shared memory is scarce
                kept.append({name: _unshared(value) for name, value in batch.items()})
            yield batch
        self._kept = kept


def _bytes_of(batch: Batch) -> int:
    values = [value for given in batch.values() for value in (given if isinstance(given, list) else [given])]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _unshared(value: Any) -> Any:
    """A value of a batch, with copies of tensors, and of those in lists, that are in shared memory."""
    if isinstance(value, list):
        return [_unshared(each) for each in value]
    return value.clone() if isinstance(value, Tensor) and value.is_shared() else value
