"""Predictor: loads a trained network once and predicts many times."""

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import default_collate

from vismoe.data import Batch, ImageSet, Sample, Unreadable, evaluation_batches, list_images
from vismoe.files import readable
from vismoe.kernels import kernels_in_use, native
from vismoe.moe import Recording, record
from vismoe.parallel import Mesh
from vismoe.parallel.gathering import is_distributed
from vismoe.tasks import Prediction, Task, task_of
from vismoe.vit import evaluating, optimize, reason_against
from vismoe.weights import as_network, data_config, open_source, open_trained, parse_source

BATCH_SIZE = 64
"""Number of images per forward pass, unless the task allows fewer."""
ImageInput = str | Path | Image.Image
"""An image file, a folder of image files, or an image."""
Forward = Callable[[nn.Module, Batch], Any]
"""Function that returns the outputs of a network for a batch."""


@dataclass(frozen=True)
class Output:
    """The outputs of a network for a batch.

    - `places`: (B,), indices of the samples in the image set.
    - `batch`: the batch.
    - `outputs`: outputs of the network.
    - `routing`: the recorded routing.
    - `started`: time.perf_counter() before the forward pass, in seconds.
    """

    places: Tensor
    batch: Batch
    outputs: Any
    routing: Recording
    started: float


class Predictor:
    """Prepares images, runs a network on them in batches, and returns predictions.

    A predictor is thread-safe; batches of several threads run one after another. After every call each module of the
    network is in the mode that it was in before.

    **Arguments:**

    - `model`: a network, or its source: a run folder, a model folder, an exported .onnx file, timm:NAME,
      hf:ORG/NAME, PRESET.TAG.
    - `task`: the task; default: the one that the model was trained for.
    - `device`: device to run on; default: the model's current device.
    - `batch_size`: number of images per forward pass; default None: 64, for detectors 16.
    - `preprocessing`: fields of timm's data configuration (input_size, mean, std, interpolation, crop_pct) that replace
      the model's; default: none.
    - `optimized`: whether the model becomes the form that `vismoe.optimize` makes, on a CPU with compiled kernels. Its
      weights cannot be changed then. Default None: only if the predictor opened it itself.
    - `dtype`: type of weights and products of that form, "float32" (default) or "bfloat16"; see `vismoe.optimize`.
    - `mesh`: processes that share each batch of `predict`; all of them call it with the same images, and get all
      predictions. Default: this process alone.

    **Attributes:** `model`, `task`, `batch_size`, and `config`: timm's data configuration of the images.

    **Raises:** ValueError, FileNotFoundError if the source is not a trained model; ValueError for bfloat16 where the
    model cannot be optimized or the processor does not have it.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        task: Task | None = None,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        optimized: bool | None = None,
        dtype: str | torch.dtype = "float32",
        mesh: Mesh | None = None,
    ):
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it must be at least 1")
        self.model = as_network(model) if isinstance(model, nn.Module) else open_network(str(model))
        if device is not None:
            self.model.to(device)
        self._optimize(not isinstance(model, nn.Module) if optimized is None else optimized, dtype)
        self.task = task_of(self.model) if task is None else task
        self.batch_size = min(BATCH_SIZE, self.task.largest_batch) if batch_size is None else batch_size
        self.config = data_config(self.model) | dict(preprocessing or {})
        self._transform = self.task.evaluation_transform(self.config)
        self._mesh = Mesh() if mesh is None else mesh
        self._lock = threading.Lock()

    def _optimize(self, wanted: bool, dtype: str | torch.dtype) -> None:
        """Packs the weights, where that is wanted and a CPU has kernels for it."""
        on_cpu = all(parameter.device.type == "cpu" for parameter in self.model.parameters())
        reason = None if native() is not None else f"compiled kernels in use: {kernels_in_use()}"
        if not wanted or not on_cpu:
            reason = "this one is not optimized" if on_cpu else "this one is not on the CPU"
        elif not [*self.model.parameters()]:
            reason = "this one has no weights of PyTorch's (an exported file)"
        reason = reason or reason_against(self.model)
        if reason is None:
            with warnings.catch_warnings():  # experts without a kernel are called as before
                warnings.simplefilter("ignore")
                self.model = optimize(self.model, dtype, inplace=True)
        elif dtype not in ("float32", torch.float32):
            raise ValueError(f"dtype={dtype!r} is for networks that vismoe.optimize converts: {reason}")

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(itertools.chain(self.model.parameters(), self.model.buffers())).device

    def prepare(self, sample: Sample) -> Sample:
        """Transforms a sample for the network; its values have no batch dimension."""
        return self._transform(sample)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Makes a batch from prepared samples."""
        batch: Batch = (self.task.collate or default_collate)(list(samples))
        return batch

    def run(self, batch: Batch, forward: Forward | None = None) -> Any:
        """The outputs of the network for a batch, without gradient.

        **Arguments:**

        - `batch`: the batch, on any device.
        - `forward`: function that computes the outputs; default: the task's.
        """
        on_device = {
            name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()
        }
        # FSDP2, which distributes networks, does not support the inference mode.
        mode = torch.no_grad() if is_distributed(self.model) else torch.inference_mode()
        with self._lock, mode, evaluating(self.model):
            return (forward or self.task.forward)(self.model, on_device)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which no thread runs the network through this predictor; others wait."""
        with self._lock:
            yield

    def outputs(
        self,
        images: ImageSet,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
        forward: Forward | None = None,
        rounds: int = 0,
    ) -> Iterator[Output]:
        """Runs the network on all images, in order, and yields the outputs batch by batch.

        **Arguments:**

        - `images`: the images.
        - `workers`: number of processes that prepare images; default 0: this process.
        - `share`: (rank, size): only every size-th image, starting at rank; default (0, 1): all images.
        - `forward`: function that computes the outputs; default: the task's.
        - `rounds`: least number of batches. After its own, a process runs its first batch again, without yielding its
          outputs: in a network that is distributed over processes, each waits for the others' tokens. Default 0.
        """
        rank, size = share
        places = torch.arange(rank, len(images), size)
        shared = images if size == 1 else images.subset(places.tolist())
        batches = evaluation_batches(shared, self.prepare, self.batch_size, workers, self.task.collate)
        first: Batch | None = None
        for batch_places, batch in zip(places.split(self.batch_size), batches, strict=True):
            started = time.perf_counter()
            with record(self.model) as routing:
                outputs = self.run(batch, forward)
            first = batch if first is None else first
            yield Output(batch_places, batch, outputs, routing, started)
        for _ in range(rounds - -(-len(places) // self.batch_size)):
            assert first is not None
            self.run(first, forward)

    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        topk: int = 5,
        left_out: Callable[[Unreadable], None] | None = None,
    ) -> list[Prediction]:
        """Predicts for each image.

        **Arguments:**

        - `images`: image files, folders of image files, or PIL images; one or several.
        - `topk`: number of classes in each prediction; default 5.
        - `left_out`: called with each unreadable file in a folder; such a file has no prediction. Default: an
          unreadable file is an error.

        **Returns:** one prediction for each image, in order.

        **Raises:** FileNotFoundError for a path that does not exist, before the first prediction; ValueError for a file
        that is not an image or is damaged, and for a folder without images.
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
                predictions += self._predict_batch(titles, samples, topk)
                titles, samples = [], []
        return predictions + (self._predict_batch(titles, samples, topk) if samples else [])

    def _predict_batch(self, titles: list[str], samples: list[Sample], topk: int) -> list[Prediction]:
        size = self._mesh.size
        own = range(self._mesh.rank, len(samples), size) or range(1)  # at least one, as experts may wait for its tokens
        with torch.no_grad():
            outputs = self.run(self.collate([samples[place] for place in own]))
            shares = self._mesh.gather(self.task.predictions(outputs, [titles[place] for place in own], topk))
        return [shares[place % size][place // size] for place in range(len(samples))]


def open_network(text: str) -> nn.Module:
    """Opens a trained network or an exported file by its source; see `vismoe.weights.parse_source`."""
    source = parse_source(text)
    return open_source(source, exported=True) if source.kind == "exported" else open_trained(source)


def predict(
    model: nn.Module,
    images: ImageInput | Iterable[ImageInput],
    topk: int = 5,
    batch_size: int | None = None,
    left_out: Callable[[Unreadable], None] | None = None,
) -> list[Prediction]:
    """Predicts the classes of images, or finds the objects in them. The prediction of an ensemble is the mean of its
    members' probabilities.

    **Arguments:**

    - `model`: a trained network.
    - `images`: image files, folders of image files, or PIL images; one or several.
    - `topk`: number of classes in each prediction; default 5.
    - `batch_size`: number of images per forward pass; default None: 64, for detectors 16.
    - `left_out`: called with each unreadable file in a folder; such a file has no prediction. Default: an unreadable
      file is an error.

    **Returns:** one prediction for each image, in order.

    **Raises:** FileNotFoundError, ValueError as `Predictor.predict`.
    """
    return Predictor(model, batch_size=batch_size).predict(images, topk, left_out)


def open_inputs(
    images: ImageInput | Iterable[ImageInput],
    read: Callable[[Path], Sample],
    left_out: Callable[[Unreadable], None] | None = None,
) -> Iterator[tuple[str, Sample]]:
    """Opens images as samples. Each image is decoded when the iterator reaches it.

    **Arguments:**

    - `images`: image files, folders of image files, or PIL images; one or several.
    - `read`: function that reads a file as a sample.
    - `left_out`: called with each unreadable file in a folder; default: an unreadable file is an error.

    **Returns:** an iterator over pairs of a title (the path of a file) and a sample.

    **Raises:** FileNotFoundError for a path that does not exist, ValueError for a folder without images, both before
    the first sample; ValueError for a damaged file, when it is decoded.
    """
    items: list[ImageInput] = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    listed: list[tuple[Path | Image.Image, Path | None]] = []  # images, and the folders that they come from
    for item in items:
        if isinstance(item, Image.Image):
            listed.append((item, None))
        elif Path(item).is_dir():
            files, unreadable = list_images(Path(item))
            if not files:
                raise ValueError(f"{item} has no images")
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
            yield str(getattr(item, "filename", "") or "image"), {"image": ImageOps.exif_transpose(item)}
            continue
        try:
            sample = read(item)
        except ValueError as error:
            if folder is None or left_out is None:
                raise
            left_out(Unreadable.of(item.relative_to(folder), error))
            continue
        yield readable(str(item)), sample
