"""A predictor: a trained network that is prepared once and called often."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from vismoe.data import Batch, ImageSet, Sample, Unreadable, evaluation_batches, list_images
from vismoe.files import readable
from vismoe.moe import Recording, record
from vismoe.tasks import Prediction, Task, task_of
from vismoe.vit import evaluating
from vismoe.weights import as_network, data_config, open_source, open_trained, parse_source

Given = str | Path | Image.Image
"""An image file, a folder of them, or an image."""
Forward = Callable[[nn.Module, Batch], Any]
"""A network and a batch -> its outputs."""


@dataclass(frozen=True)
class Output:
    """A network's outputs for one batch of a set. `places` (B,): the samples' places in the set; `routing`: what was
    recorded; `started`: time.perf_counter before the forward pass."""

    places: Tensor
    batch: Batch
    outputs: Any
    routing: Recording
    started: float


class Predictor:
    """Prepares images, runs a model on them in batches, and gives its predictions.

    Several threads may share a predictor: batches run one after the other. After every call each module of the model is
    in the mode that it was in before.

    **Arguments:**

    - `model`: a network, or its source: a run folder, a model folder, an exported .onnx file, timm:NAME,
      hf:ORG/NAME, PRESET.TAG.
    - `task`: the task that it was trained for; default: the one that the model records.
    - `device`: device to run on; default: the model's.
    - `batch_size`: images of one forward pass, default 64.
    - `preprocessing`: fields of timm's data configuration (input_size, mean, std, interpolation, crop_pct) that replace
      the model's.

    **Raises:** ValueError, FileNotFoundError for a source that is no trained model.
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
        self.model = as_network(model) if isinstance(model, nn.Module) else open_network(str(model))
        if device is not None:
            self.model.to(device)
        self.task = task_of(self.model) if task is None else task
        self.batch_size = batch_size
        config = data_config(self.model) | dict(preprocessing or {})
        self._transform = self.task.evaluation_transform(config)
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def prepare(self, sample: Sample) -> Sample:
        """The transformed sample, without a batch dimension."""
        return self._transform(sample)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Prepared samples as one batch."""
        batch: Batch = (self.task.collate or default_collate)(list(samples))
        return batch

    def run(self, batch: Batch, forward: Forward | None = None) -> Any:
        """The network's outputs for a batch, without gradient. `forward`: replaces the task's."""
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

        **Arguments:** `workers`: processes that prepare images, default 0: this process; `share`: (rank, size), every
        size-th sample from rank on; `forward`: replaces the task's.
        """
        rank, size = share
        places = torch.arange(rank, len(images), size)
        shared = images if size == 1 else images.subset(places.tolist())
        batches = evaluation_batches(shared, self.prepare, self.batch_size, workers, self.task.collate)
        for batch_places, batch in zip(places.split(self.batch_size), batches, strict=True):
            started = time.perf_counter()
            with record(self.model) as routing:
                outputs = self.run(batch, forward)
            yield Output(batch_places, batch, outputs, routing, started)

    def predict(
        self,
        images: Given | Iterable[Given],
        topk: int = 5,
        left_out: Callable[[Unreadable], None] | None = None,
    ) -> list[Prediction]:
        """The predictions for images, one each, in order.

        **Arguments:** `images`: files, folders of them, or PIL images; `topk`: number of classes to name, default 5;
        `left_out`: is called with each file of a folder that cannot be read, which then has no prediction.

        **Raises:** ValueError for a file that is no image (in a folder, unless `left_out` is given), FileNotFoundError
        for a path that does not exist; both before the first image is run, except for damaged files.
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


def open_network(text: str) -> nn.Module:
    """The trained network, or the exported file, that a string names; see `vismoe.weights.parse_source`."""
    source = parse_source(text)
    return open_source(source, exported=True) if source.kind == "exported" else open_trained(source)


def predict(
    model: nn.Module,
    images: Given | Iterable[Given],
    topk: int = 5,
    batch_size: int = 64,
    left_out: Callable[[Unreadable], None] | None = None,
) -> list[Prediction]:
    """Predicts the classes of images: one prediction an image. An ensemble answers with the mean of its members'
    probabilities.

    **Arguments:** `model`: a network; `images`: files, folders of them, or PIL images; `topk`: number of classes
    to name, default 5; `batch_size`: images of one forward pass, default 64; `left_out`: is called with each file of a
    folder that cannot be read, which then has no prediction.

    **Raises:** as `Predictor.predict`.
    """
    return Predictor(model, batch_size=batch_size).predict(images, topk, left_out)


def open_inputs(
    given: Given | Iterable[Given],
    read: Callable[[Path], Sample],
    left_out: Callable[[Unreadable], None] | None = None,
) -> Iterator[tuple[str, Sample]]:
    """Samples with their titles, each decoded when it is asked for.

    **Arguments:** `given`: files, folders or images; `read`: gives the sample of a file; `left_out`: is called with
    each file of a folder that cannot be read.

    **Raises:** FileNotFoundError for a path that does not exist, ValueError for a folder without images, both before
    the first sample; ValueError for a damaged file, when it is decoded.
    """
    items: list[Given] = [given] if isinstance(given, str | Path | Image.Image) else list(given)
    listed: list[tuple[Path | Image.Image, Path | None]] = []  # each with the folder that it comes from
    for item in items:
        if isinstance(item, Image.Image):
            listed.append((item, None))
        elif Path(item).is_dir():
            files, unreadable = list_images(Path(item))
            if not files:
                raise ValueError(f"{item} holds no images")
            listed += [(path, Path(item)) for path in files]
            if left_out is not None:
                for entry in unreadable:
                    left_out(entry)
        elif Path(item).is_file():
            listed.append((Path(item), None))
        else:
            raise FileNotFoundError(f"{item}: no such image or folder")
    return _decoded(listed, read, left_out)


def _decoded(
    listed: Sequence[tuple[Path | Image.Image, Path | None]],
    read: Callable[[Path], Sample],
    left_out: Callable[[Unreadable], None] | None,
) -> Iterator[tuple[str, Sample]]:
    for item, folder in listed:
        if isinstance(item, Image.Image):
            yield str(getattr(item, "filename", "") or "image"), {"image": item}
            continue
        try:
            sample = read(item)
        except ValueError as error:
            if folder is None or left_out is None:
                raise
            left_out(Unreadable.of(item.relative_to(folder), error))
            continue
        yield readable(str(item)), sample
