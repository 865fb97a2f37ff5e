"""From images to batches: transforms, and an order that depends on nothing but (seed, epoch, index)."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .image_set import ImageSet
from .images import eight_bits, flatten_alpha
from .seeds import mix_seeds

Transform = Callable[[Image.Image], Any]
LONGEST = 20


def evaluation_transform(config: dict[str, Any]) -> Transform:
    """An image as the network wants it, after timm's data configuration: input_size, mean, std, interpolation,
    crop_pct. Scaled so that the crop fits, centre crop, grey or colour as the network has channels: timm's own
    transform, so that weights are evaluated as they were published."""
    channels = _channels(config["input_size"][0])
    try:
        return v2.Compose([channels, create_transform(**config)])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the model's data configuration {config} cannot be followed: {error!r}") from error


def evaluation_scale(config: dict[str, Any]) -> Transform:
    """An image in the channels and the scale of evaluation, its centre not yet cut out: what `evaluation_transform`
    makes of it is, bit for bit, what it makes of the image."""
    whole, *_ = create_transform(**config).transforms
    return v2.Compose([_channels(config["input_size"][0]), whole])


def training_transform(
    config: dict[str, Any],
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    flip: float = 0.0,
    crop: float = 1.0,
    color_jitter: float = 0.0,
    noise: float = 0.0,
    erase: float = 0.0,
) -> Transform:
    """The same, drawn at random: `crop`: a crop of at least this share of the image's area, of a shape up to 4:3
    either way, in place of the centre; `flip`: share of images that are mirrored; an affine map: rotation and shear
    up to so many degrees, shift up to a share of the size, scale within 1 ± `scale`; what comes in from outside is
    white; `color_jitter`: brightness, contrast and saturation, each times a factor within 1 ± so much; `noise`:
    standard deviation of what is added to each pixel, in 0…1; `erase`: share of images of which a rectangle, 2 % to
    33 % of the area, gets the mean colour (Zhong et al. 2017)."""
    channels, *size = config["input_size"]
    interpolation = InterpolationMode(config["interpolation"])
    scaled = [int(length / config["crop_pct"]) for length in size]
    square = scaled[0] == scaled[1]  # for which timm rounds the long side otherwise
    whole = (
        v2.Resize(scaled[0], interpolation) if square else ResizeKeepRatio(scaled, interpolation=interpolation.value)
    )
    centre = v2.Compose([whole, v2.CenterCrop(size)])
    affine = v2.RandomAffine(
        degrees,
        translate=(translate, translate),
        scale=(1 - scale, 1 + scale),
        shear=shear,
        interpolation=InterpolationMode.BILINEAR,
        fill=255,
    )
    return v2.Compose(
        [
            _channels(channels),
            (partial(_of_size, tuple(size), centre) if scaled == size else centre)
            if crop == 1
            else v2.RandomResizedCrop(size, (crop, 1.0), (3 / 4, 4 / 3), interpolation),
            # While the image is Pillow's, which moves small ones several times as fast as tensors are moved.
            *([v2.RandomHorizontalFlip(flip)] if flip else []),
            *([affine] if degrees or translate or scale or shear else []),
            *([v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []),
            _normalized(config, noise),
            *([v2.RandomErasing(erase)] if erase else []),
        ]
    )


def _of_size(size: tuple[int, int], change: Transform, image: Image.Image) -> Image.Image:
    """An image, changed to be of a size (height, width) where it is not."""
    return image if image.size == size[::-1] else change(image)


def _channels(channels: int) -> Transform:
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"the network takes {channels} channels; images can be had with 1 (grey) or 3 (colour)")
    return partial(_as_mode, mode)


def _as_mode(mode: str, image: Image.Image) -> Image.Image:
    return flatten_alpha(eight_bits(_shortened(image))).convert(mode)


def _shortened(image: Image.Image) -> Image.Image:
    """An image's middle, of at most LONGEST times the length of its short side: scaled up by it, a hairline of a few
    kilobytes would fill all memory, and no network is shown its ends."""
    width, height = image.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = ((length - min(length, most)) // 2 for length in (width, height))
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def _normalized(config: dict[str, Any], noise: float) -> Transform:
    channels = config["input_size"][0]
    mean, std = (list(map(float, config[name]))[:channels] for name in ("mean", "std"))
    return partial(_as_tensor, mean, std, noise)


def _as_tensor(mean: list[float], std: list[float], noise: float, image: Image.Image) -> Tensor:
    """What v2's ToImage, ToDtype, GaussianNoise and Normalize do, without asking for each image whether it comes with
    boxes."""
    pixels = functional.to_dtype_image(functional.pil_to_tensor(image), torch.float32, scale=True)
    if noise:
        pixels = (pixels + noise * torch.randn_like(pixels)).clamp(0, 1)
    return functional.normalize_image(pixels, mean, std)


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Transformed images by (epoch, index). Each draws its randomness from (seed, epoch, index) alone, so any number
    of workers gives the same stream."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int = 0):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(mix_seeds(self.seed, epoch, index))
        try:
            return self.transform(self.images.image(index)), self.images.labels[index]
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


class SharedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of an endless stream, of each the share of one of `ranks` processes.

    A process gets what stands at both ends of its batch in turn, so that it holds with each image the one that mixup
    pairs it with, and with each part of its share (gradient accumulation) a part of the same part of the whole.
    """

    def __init__(self, stream: ShuffledForever, batch_size: int, rank: int = 0, ranks: int = 1):
        check_shares(batch_size, ranks)
        self.stream, self.batch_size = stream, batch_size
        last = batch_size - 1
        self.mine = [place for place in range(batch_size) if min(place, last - place) % ranks == rank]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = iter(self.stream)
        while batch := list(itertools.islice(stream, self.batch_size)):
            yield [batch[place] for place in self.mine]


def check_shares(batch_size: int, ranks: int) -> None:
    """Raises ValueError where so many processes cannot share a batch evenly, in pairs."""
    if ranks > 1 and batch_size % (2 * ranks):
        raise ValueError(f"batch_size={batch_size} for {ranks} processes: it must be a multiple of {2 * ranks}")


def training_batches(
    images: ImageSet,
    transform: Transform,
    batch_size: int,
    seed: int,
    workers: int = 0,
    start: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Any]:
    """Endless shuffled batches, from the `start`-th image of the stream on; of each, the share of a process."""
    batches = SharedBatches(ShuffledForever(len(images), seed, start), batch_size, rank, ranks)
    samples = Samples(images, transform, seed)
    return DataLoader(samples, batch_sampler=batches, num_workers=workers, worker_init_fn=leave_stopping)


def leave_stopping(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a system that shuts down asks every one to end: when to stop is
    for the training to say, not for its workers. What their parent sends them they obey."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def evaluation_batches(images: ImageSet, transform: Transform, batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Every image once, in order."""
    keys = [(0, index) for index in range(len(images))]
    return DataLoader(
        Samples(images, transform), batch_size, sampler=keys, num_workers=workers, worker_init_fn=leave_stopping
    )
