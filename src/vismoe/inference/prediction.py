"""What a network says of single images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vismoe.data import Unreadable, evaluation_transform, list_images, read_image
from vismoe.vit import mean_of_images
from vismoe.weights import as_network, data_config

from .labels import is_multi_label, label_names


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, as (name, probability). The probabilities of all classes sum to
    one, but where an image may show several."""

    image: str
    classes: list[tuple[str, float]]


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
    topk: int = 5,
    batch_size: int = 64,
    left_out: Callable[[Unreadable], None] | None = None,
) -> list[Prediction]:
    """What a network says of images: files, folders of them, or PIL images; one prediction an image, of an
    ensemble by the mean of its members' probabilities.

    **Arguments:** `left_out`: is told of each file of a folder that cannot be read, which then has no prediction.

    **Raises:** ValueError for what is no image (in a folder, unless `left_out` is given), FileNotFoundError for what
    is not there; both before the first image is looked at, but for damaged files.
    """
    for name, number in (("topk", topk), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}={number}: it must be at least 1")
    if (classes := getattr(model, "num_classes", None)) is not None and classes < 1:
        raise ValueError("this model has no classes (num_classes=0): it gives features, not predictions")
    model = as_network(model)
    given = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    opened = _images(given, left_out)
    transform, device = evaluation_transform(data_config(model)), next(model.parameters()).device
    names, several = label_names(model), is_multi_label(model)
    predictions = []
    while batch := list(islice(opened, batch_size)):
        pixels = torch.stack([transform({"image": image})["image"] for _, image in batch])
        logits = model.eval()(pixels.to(device))
        if logits.ndim != 2:
            raise ValueError(f"this model gives {tuple(logits.shape[1:])} values an image, not one for each class")
        logits = mean_of_images(logits.float(), len(pixels), "sigmoid" if several else "softmax")
        probabilities = (logits.sigmoid() if several else logits.softmax(-1)).cpu()
        best = probabilities.topk(min(topk, probabilities.shape[1]))
        for (title, _), values, indices in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            predictions.append(Prediction(title, [(names[i], v) for i, v in zip(indices, values, strict=True)]))
    return predictions


def _images(
    given: Sequence[str | Path | Image.Image], left_out: Callable[[Unreadable], None] | None
) -> Iterator[tuple[str, Image.Image]]:
    """Images with their titles, each decoded when it is asked for. What is not there is found before the first."""
    listed: list[tuple[Path | Image.Image, Path | None]] = []  # with the folder that it is of
    for item in given:
        if isinstance(item, Image.Image):
            listed.append((item, None))
        elif Path(item).is_dir():
            found, others = list_images(Path(item))
            if not found:
                raise ValueError(f"{item} holds no images")
            listed += [(path, Path(item)) for path in found]
            if left_out is not None:
                for entry in others:
                    left_out(entry)
        elif Path(item).is_file():
            listed.append((Path(item), None))
        else:
            raise FileNotFoundError(f"{item}: no such image or folder")
    return _decoded(listed, left_out)


def _decoded(
    listed: Sequence[tuple[Path | Image.Image, Path | None]], left_out: Callable[[Unreadable], None] | None
) -> Iterator[tuple[str, Image.Image]]:
    for item, folder in listed:
        if isinstance(item, Image.Image):
            yield str(getattr(item, "filename", "") or "image"), item
            continue
        try:
            image = read_image(item)
        except ValueError as error:
            if folder is None or left_out is None:
                raise
            left_out(Unreadable.of(item.relative_to(folder), error))
            continue
        yield str(item), image
