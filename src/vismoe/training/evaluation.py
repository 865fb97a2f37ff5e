"""How good a network is on pictures it has not seen, and what it says of single ones."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from timm.data.model_config import resolve_input_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from vismoe.data import ImageSet, evaluation_batches, evaluation_transform, list_images, read_image
from vismoe.moe import record


@dataclass(frozen=True)
class Evaluation:
    """`top1` and `top5` (top-k where there are only k < 5 classes) in 0…1, `per_class`: top1 of each class's images,
    NaN where there are none; `calibration_error`: mean distance of confidence and accuracy over 15 bins of confidence
    (Guo et al. 2017); mean cross-entropy `loss`; `labels` and `predictions` (N,); `images_per_second` of the forward
    passes alone; `load`: choices of each expert by layer."""

    top1: float
    top5: float
    per_class: list[float]
    calibration_error: float
    loss: float
    labels: Tensor
    predictions: Tensor
    images_per_second: float
    load: dict[str, list[int]]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, best first, as (name, probability)."""

    image: str
    classes: list[tuple[str, float]]


def data_config(model: nn.Module) -> dict[str, Any]:
    """How a network wants its pictures: timm's input_size, mean, std (one value a channel), interpolation, crop_pct."""
    config: dict[str, Any] = resolve_input_data_config(model)
    return config


def resolve_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else CPU.

    **Raises:** ValueError for a device that is not here.
    """
    number = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(device for device, there in number.items() if there))
    here = [device for device, there in number.items() if there]
    here += [f"{device}:{index}" for device in here for index in range(number[device])]
    if name not in here:
        raise ValueError(f"device {name!r} is not here; accepted are auto, {', '.join(here)}")
    return torch.device(name)


@torch.inference_mode()
def evaluate(model: nn.Module, images: ImageSet, batch_size: int = 256, workers: int = 0) -> Evaluation:
    """Runs a network over a set, once, at evaluation. Leaves it in the mode it was in."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    load: dict[str, Tensor] = {}
    logits, seconds = [], 0.0
    for pictures, _ in evaluation_batches(images, evaluation_transform(data_config(model)), batch_size, workers):
        start = time.perf_counter()
        with record(model) as routing:
            logits.append(model(pictures.to(device)).float().cpu())
        seconds += time.perf_counter() - start
        for name, calls in routing.layers.items():
            counts = torch.stack([call.load.cpu() for call in calls]).sum(0)
            load[name] = load[name] + counts if name in load else counts
    model.train(was_training)
    scores, labels = torch.cat(logits), torch.tensor(images.labels)
    classes, hits = scores.shape[1], scores.argmax(1) == labels
    top5 = multiclass_accuracy(scores, labels, num_classes=classes, average="micro", top_k=min(5, classes))
    return Evaluation(
        top1=multiclass_accuracy(scores, labels, num_classes=classes, average="micro").item(),
        top5=top5.item(),
        per_class=[hits[labels == number].float().mean().item() for number in range(classes)],
        calibration_error=multiclass_calibration_error(scores.softmax(1), labels, num_classes=classes).item(),
        loss=F.cross_entropy(scores, labels).item(),
        labels=labels,
        predictions=scores.argmax(1),
        images_per_second=len(labels) / seconds,
        load={name: counts.tolist() for name, counts in load.items()},
    )


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
    topk: int = 5,
    batch_size: int = 64,
) -> list[Prediction]:
    """What a network says of pictures: files, folders of them, or PIL images; one prediction a picture.

    **Raises:** ValueError for what is no picture, FileNotFoundError for what is not there.
    """
    for name, number in (("topk", topk), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}={number}: it must be at least 1")
    if (classes := getattr(model, "num_classes", None)) is not None and classes < 1:
        raise ValueError("this model has no classes (num_classes=0): it gives features, not predictions")
    pictures = _pictures([images] if isinstance(images, str | Path | Image.Image) else list(images))
    transform, device = evaluation_transform(data_config(model)), next(model.parameters()).device
    names = label_names(model)
    predictions = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = torch.stack([transform(p if isinstance(p, Image.Image) else read_image(p)) for p in batch])
        logits = model.eval()(pixels.to(device))
        if logits.ndim != 2:
            raise ValueError(f"this model gives {tuple(logits.shape[1:])} values an image, not one for each class")
        probabilities = logits.float().softmax(-1).cpu()
        best = probabilities.topk(min(topk, probabilities.shape[1]))
        for picture, values, indices in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            title = (
                str(getattr(picture, "filename", "") or "image") if isinstance(picture, Image.Image) else str(picture)
            )
            predictions.append(Prediction(title, [(names[i], v) for i, v in zip(indices, values, strict=True)]))
    return predictions


def label_names(model: nn.Module) -> Sequence[str]:
    """The names of a network's classes; their numbers where it does not know any."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return config.get("label_names") or [str(number) for number in range(cast(int, model.num_classes))]


def _pictures(given: Sequence[str | Path | Image.Image]) -> list[Path | Image.Image]:
    pictures: list[Path | Image.Image] = []
    for item in given:
        if isinstance(item, Image.Image):
            pictures.append(item)
        elif Path(item).is_dir():
            found = list_images(Path(item))
            if not found:
                raise ValueError(f"{item} holds no images")
            pictures.extend(found)
        elif Path(item).is_file():
            pictures.append(Path(item))
        else:
            raise FileNotFoundError(f"{item}: no such image or folder")
    return pictures
