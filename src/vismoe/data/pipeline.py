"""From pictures to batches: transforms, and an order that depends on nothing but (seed, epoch, index)."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from .sets import ImageSet

Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(config: dict[str, Any]) -> Transform:
    """A picture as the network wants it, after timm's data configuration: input_size, mean, std, interpolation,
    crop_pct. Scaled so that the crop fits, centre crop, grey or colour as the network has channels: timm's own
    transform, so that weights are evaluated as they were published."""
    channels = _channels(config["input_size"][0])
    try:
        return v2.Compose([channels, create_transform(**config)])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the model's data configuration {config} cannot be followed: {error!r}") from error


def training_transform(
    config: dict[str, Any], degrees: float, translate: float, scale: float, shear: float, flip: float = 0.0
) -> Transform:
    """The same with a random affine map: rotation and shear up to so many degrees, shift up to a share of the size,
    scale within 1 ± `scale`. What comes in from outside is white. `flip`: share of pictures that are mirrored."""
    channels, height, width = config["input_size"]
    return v2.Compose(
        [
            _channels(channels),
            v2.ToImage(),
            v2.Resize((height, width), InterpolationMode(config["interpolation"])),
            v2.ToDtype(torch.float32, scale=True),
            _normalize(config),
            *([v2.RandomHorizontalFlip(flip)] if flip else []),
            v2.RandomAffine(
                degrees,
                translate=(translate, translate),
                scale=(1 - scale, 1 + scale),
                shear=shear,
                interpolation=InterpolationMode.BILINEAR,
                fill=[(1 - mean) / std for mean, std in zip(config["mean"], config["std"], strict=True)],
            ),
        ]
    )


def _channels(channels: int) -> Transform:
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"the network takes {channels} channels; pictures can be had with 1 (grey) or 3 (colour)")
    return v2.Lambda(lambda picture: flatten_alpha(_eight_bits(picture)).convert(mode))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Sixteen-bit grey as eight-bit grey, which Pillow's own conversion cuts off at 255; others as they are."""
    if not picture.mode.startswith("I;16"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.float32) / 257).round().astype(np.uint8))


def flatten_alpha(picture: Image.Image) -> Image.Image:
    """A picture with transparency on white ground; others as they are."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    colours = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)


def _normalize(config: dict[str, Any]) -> Transform:
    channels = config["input_size"][0]
    mean, std = (list(config[name])[:channels] for name in ("mean", "std"))
    return v2.Normalize(mean, std)


class Samples(Dataset[tuple[Tensor, int]]):
    """Transformed pictures by (epoch, index). Each draws its randomness from (seed, epoch, index) alone, so any number
    of workers gives the same stream."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int = 0):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(mix_seeds(self.seed, epoch, index))
        try:
            return self.transform(self.images.picture(index)), self.images.labels[index]
        finally:
            torch.default_generator.set_state(state)


class ShuffledForever(Sampler[tuple[int, int]]):
    """(epoch, index) of a fresh permutation each epoch, without end; `start` skips what a resumed run has seen."""

    def __init__(self, length: int, seed: int, start: int = 0):
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, position = divmod(self.start, self.length)
        while True:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch, -1))
            for index in torch.randperm(self.length, generator=generator).tolist()[position:]:
                yield epoch, index
            epoch, position = epoch + 1, 0


def training_batches(
    images: ImageSet, transform: Transform, batch_size: int, seed: int, workers: int = 0, start: int = 0
) -> DataLoader[Any]:
    """Endless shuffled batches, from the `start`-th picture of the stream on."""
    sampler, samples = ShuffledForever(len(images), seed, start), Samples(images, transform, seed)
    return DataLoader(samples, batch_size, sampler=sampler, num_workers=workers, worker_init_fn=_leave_stopping)


def _leave_stopping(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: when to stop is for the training to say, not for its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def evaluation_batches(images: ImageSet, transform: Transform, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Every picture once, in order."""
    keys = [(0, index) for index in range(len(images))]
    return DataLoader(Samples(images, transform), batch_size, sampler=keys, num_workers=workers)


def mix_seeds(*numbers: int) -> int:
    """One well-mixed 63-bit seed of several numbers (splitmix64)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
