"""What a network answers, as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vismoe.data import Batch, Sample
from vismoe.explain import data_uri, using_capacity
from vismoe.explain.trace import trace_sample
from vismoe.features.features import embed_pixels
from vismoe.inference.memory import return_memory
from vismoe.tasks import ClassPrediction, Prediction
from vismoe.tasks.detection import BoxPrediction

from .models import Served
from .requests.decoding import decode_image
from .requests.errors import ServiceError

LARGE = 8_000_000
"""Pixels of an image above which the memory that it took is returned to the system at once."""
DIGITS = 8
"""Decimal places of probabilities: an error of 5e-9."""


@dataclass(frozen=True)
class Predict:
    """Predictions of a model.

    - `served`: the model.
    - `capacity`: capacity factor; None: the model's own. With one, an image is a batch of its own: otherwise its answer
      would depend on whose images are in the batch.
    """

    served: Served
    capacity: float | None = None

    @property
    def largest(self) -> int | None:
        return self.served.largest_batch if self.capacity is None else 1

    def prepare(self, content: bytes) -> Sample:
        """Decodes and transforms an image file."""
        return _prepared(self.served, content)

    def __call__(self, values: Sequence[tuple[Sample, int]]) -> list[list[dict[str, Any]]]:
        """The predictions for pairs of a sample and its number of classes."""
        predictor = self.served.predictor

        def forward(network: nn.Module, batch: Batch) -> Any:
            with using_capacity(network, self.capacity):
                return predictor.task.forward(network, batch)

        samples, topk = zip(*values, strict=True)
        with torch.no_grad():
            outputs = predictor.run(predictor.collate(samples), None if self.capacity is None else forward)
            predictions = predictor.task.predictions(outputs, ["image"] * len(samples), max(topk))
        return [found(prediction, most) for prediction, most in zip(predictions, topk, strict=True)]


@dataclass(frozen=True)
class Embed:
    """Features of a model, the input of its classifier."""

    served: Served

    @property
    def largest(self) -> int | None:
        return self.served.largest_batch

    def prepare(self, content: bytes) -> Sample:
        """Decodes and transforms an image file."""
        return _prepared(self.served, content)

    def __call__(self, values: Sequence[Sample]) -> list[list[float]]:
        predictor = self.served.predictor

        def forward(network: nn.Module, batch: Batch) -> Tensor:
            return embed_pixels(network, batch["image"])

        vectors: Tensor = predictor.run(predictor.collate(values), forward)
        return [[round(value, DIGITS) for value in row] for row in vectors.float().cpu().tolist()]


@dataclass(frozen=True)
class Explain:
    """What the experts of a model did with an image.

    - `served`: the model.
    - `capacity`: capacity factor; None: the model's own.
    - `topk`: number of classes in the prediction.
    """

    served: Served
    capacity: float | None
    topk: int
    largest: int = 1

    def prepare(self, content: bytes) -> Sample:
        """Decodes and transforms an image file."""
        return _prepared(self.served, content)

    def __call__(self, values: Sequence[Sample]) -> list[dict[str, Any]]:
        return [self._explain(sample) for sample in values]

    def _explain(self, sample: Sample) -> dict[str, Any]:
        try:
            trace = trace_sample(self.served.predictor, sample, capacity=self.capacity, topk=self.topk, rollout=True)
        except ValueError as error:
            raise ServiceError("not_supported", "the experts of this model cannot be shown for this image") from error
        return {
            "predictions": found(trace.prediction, self.topk),
            "milliseconds": round(1000 * trace.seconds, 2),
            "image": data_uri(trace.image),
            **trace.to_json(),
        }


def found(prediction: Prediction, topk: int) -> list[dict[str, Any]]:
    """A prediction as a list of classes, or of objects with boxes, by descending probability."""
    if isinstance(prediction, BoxPrediction):
        return [
            {"label": box.name, "probability": round(box.score, DIGITS), "box": [round(side, 2) for side in box.box]}
            for box in prediction.boxes
        ]
    assert isinstance(prediction, ClassPrediction)  # open_served accepts no other models
    return [{"label": name, "probability": round(value, DIGITS)} for name, value in prediction.classes[:topk]]


def _prepared(served: Served, content: bytes) -> Sample:
    image = decode_image(content)
    is_large = image.width * image.height > LARGE
    try:
        return served.predictor.prepare({"image": image})
    except ValueError as error:
        raise ServiceError("bad_image", "the image cannot be prepared for this model") from error
    finally:
        del image
        if is_large:
            return_memory()
