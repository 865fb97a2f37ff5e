"""What a network says of single pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vismoe.data import evaluation_transform, list_images, read_image

from .evaluation import data_config
from .labels import is_multi_label, label_names


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, best first, as (name, probability). The probabilities of all classes sum to
    one, but where a picture may show several."""

    image: str
    classes: list[tuple[str, float]]


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
    names, several = label_names(model), is_multi_label(model)
    predictions = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = torch.stack([transform(p if isinstance(p, Image.Image) else read_image(p)) for p in batch])
        logits = model.eval()(pixels.to(device))
        if logits.ndim != 2:
            raise ValueError(f"this model gives {tuple(logits.shape[1:])} values an image, not one for each class")
        probabilities = (logits.float().sigmoid() if several else logits.float().softmax(-1)).cpu()
        best = probabilities.topk(min(topk, probabilities.shape[1]))
        for picture, values, indices in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            title = (
                str(getattr(picture, "filename", "") or "image") if isinstance(picture, Image.Image) else str(picture)
            )
            predictions.append(Prediction(title, [(names[i], v) for i, v in zip(indices, values, strict=True)]))
    return predictions


def _pictures(given: Sequence[str | Path | Image.Image]) -> list[Path | Image.Image]:
    pictures: list[Path | Image.Image] = []
    for item in given:
        if isinstance(item, Image.Image):
            pictures.append(item)
        elif Path(item).is_dir():
            found, _ = list_images(Path(item))
            if not found:
                raise ValueError(f"{item} holds no images")
            pictures.extend(found)
        elif Path(item).is_file():
            pictures.append(Path(item))
        else:
            raise FileNotFoundError(f"{item}: no such image or folder")
    return pictures
