"""A trained network put to work: made ready once, asked as often as one likes."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from vismoe.data import Batch, ImageSet, Sample, Unreadable, evaluation_batches
from vismoe.moe import Recording, record
from vismoe.tasks import Prediction, Task, task_of
from vismoe.vit import evaluating
from vismoe.weights import as_network, data_config, load_network

from .inputs import Given, open_inputs

Forward = Callable[[nn.Module, Batch], Any]
"""A network and a batch -> its outputs."""


@dataclass(frozen=True)
class Output:
    """What a network gives for one batch of a set: `places` (B,) of its samples, the `batch`, the `outputs`, the
    `routing` that was recorded, and when the forward pass `started` (time.perf_counter)."""

    places: Tensor
    batch: Batch
    outputs: Any
    routing: Recording
    started: float


class Predictor:
    """A model that answers: it prepares images, runs them in batches, and says what they are.

    Several threads may use one at a time: batches run one after the other. A model that is handed in is borrowed: after
    every call each of its modules is in the mode that it was in.

    **Arguments:**

    - `model`: a network, or the path of a run folder, a model folder or an exported .onnx file.
    - `task`: what it was trained for; by default what the model says.
    - `device`: where to run; by default where the model is.
    - `batch_size`: images of one forward pass, default 64.
    - `preprocessing`: fields of timm's data configuration (input_size, mean, std, interpolation, crop_pct) that are to
      differ from the model's.

    **Raises:** ValueError, FileNotFoundError for what is no model.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        task: Task | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        preprocessing: Mapping[str, Any] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it must be at least 1")
        self.model = as_network(model) if isinstance(model, nn.Module) else load_network(model)
        if device is not None:
            self.model.to(device)
        self.task = task_of(self.model) if task is None else task
        self.batch_size = batch_size
        config = data_config(self.model) | dict(preprocessing or {})
        self._transform = self.task.evaluation_transform(config)
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def prepare(self, sample: Sample) -> Sample:
        """A sample as the network takes it, without a batch dimension."""
        return self._transform(sample)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Prepared samples as one batch."""
        batch: Batch = (self.task.collate or default_collate)(list(samples))
        return batch

    def run(self, batch: Batch, forward: Forward | None = None) -> Any:
        """The network's outputs for a batch, without gradient; `forward`: in place of the task's."""
        moved = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        with self._lock, torch.inference_mode(), evaluating(self.model):
            return (forward or self.task.forward)(self.model, moved)

    def outputs(
        self,
        images: ImageSet,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
        forward: Forward | None = None,
    ) -> Iterator[Output]:
        """Runs the network over a set, in order.

        **Arguments:** `workers`: processes that prepare images; `share`: (rank, size), every size-th sample from
        rank on; `forward`: in place of the task's.
        """
        rank, size = share
        places = torch.arange(rank, len(images), size)
        part = images if size == 1 else images.subset(places.tolist())
        batches = evaluation_batches(part, self.prepare, self.batch_size, workers, self.task.collate)
        for own, batch in zip(places.split(self.batch_size), batches, strict=True):
            started = time.perf_counter()
            with record(self.model) as routing:
                outputs = self.run(batch, forward)
            yield Output(own, batch, outputs, routing, started)

    def predict(
        self,
        images: Given | Iterable[Given],
        topk: int = 5,
        left_out: Callable[[Unreadable], None] | None = None,
    ) -> list[Prediction]:
        """The answers for images, one each, in order.

        **Arguments:** `images`: files, folders of them, or PIL images; `topk`: how many classes to name, default 5;
        `left_out`: is told of each file of a folder that cannot be read, which then has no answer.

        **Raises:** ValueError for what is no image (in a folder, unless `left_out` is given), FileNotFoundError for
        what is not there; both before the first image is run, but for damaged files.
        """
        if topk < 1:
            raise ValueError(f"topk={topk}: it must be at least 1")
        self.task.check_model(self.model)
        predictions: list[Prediction] = []
        titles: list[str] = []
        samples: list[Sample] = []
        for title, sample in open_inputs(images, self.task.read, left_out):
            titles.append(title)
            samples.append(self.prepare(sample))
            if len(samples) == self.batch_size:
                predictions += self._answer(titles, samples, topk)
                titles, samples = [], []
        return predictions + (self._answer(titles, samples, topk) if samples else [])

    def _answer(self, titles: list[str], samples: list[Sample], topk: int) -> list[Prediction]:
        with torch.inference_mode():
            return self.task.predictions(self.run(self.collate(samples)), titles, topk)


def predict(
    model: nn.Module,
    images: Given | Iterable[Given],
    topk: int = 5,
    batch_size: int = 64,
    left_out: Callable[[Unreadable], None] | None = None,
) -> list[Prediction]:
    """What a network says of images: one prediction an image, of an ensemble by the mean of its members' probabilities.

    **Arguments:** `model`: a network; `images`: files, folders of them, or PIL images; `topk`: how many classes to
    name, default 5; `batch_size`: images of one forward pass, default 64; `left_out`: is told of each file of a folder
    that cannot be read, which then has no prediction.

    **Raises:** as `Predictor.predict`.
    """
    return Predictor(model, batch_size=batch_size).predict(images, topk, left_out)
