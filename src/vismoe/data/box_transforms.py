"""Transforms of images with boxes, for detection: letterboxing with a mask, and augmentation of images and boxes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from .image_set import Batch, Sample
from .images import MAX_LEVEL
from .transforms import MODES, Transform, normalization, with_channels

LISTED = ("boxes", "classes", "ignored")
"""The values of a sample that have one row for each box. A batch has lists of them."""


def box_evaluation_transform(config: dict[str, Any]) -> Transform:
    """Creates the transform of samples for evaluation and prediction: letterbox, normalise.

    The image is scaled to fit inside the network's input, keeps its aspect ratio, and lies at the top left.

    **Arguments:**

    - `config`: timm's data configuration of the network: input_size (C, H, W), mean, std, interpolation; and max_level,
      the level of 16-bit images that is white, default 65,535. crop_pct and crop_mode are not used.

    **Returns:** a function that transforms a sample. "image", a PIL image of h × w pixels, becomes a float tensor
    (C, H, W). Around the image it is 0, which is the mean colour. These values are new or changed:

    - "mask": bool (H, W), True where the image is.
    - "size": int64 (2,), h and w.
    - "scale": float32 (2,), pixels of the input per pixel of the image, vertically and horizontally. They differ
      slightly, because the sides of the scaled image are whole pixels.
    - "boxes" (N, 4), if the sample has them: multiplied by "scale".

    It raises ValueError if "image" is not a PIL image, or if "boxes" are not `tv_tensors.BoundingBoxes` in XYXY format
    on a canvas of the image's size.

    **Raises:** ValueError if the configuration has another number of channels than 1 or 3, or an unknown interpolation.
    """
    return partial(_evaluated, _Input.of(config))


def box_training_transform(
    config: dict[str, Any],
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.4,
    shear: float = 0.0,
    flip: float = 0.5,
    crop: float = 0.75,
    color_jitter: float = 0.0,
    noise: float = 0.0,
    erase: float = 0.0,
    aspect: float = 0.1,
    vertical_flip: float = 0.0,
    quarter_turn: float = 0.0,
    min_visible: float = 0.3,
) -> Transform:
    """Creates the transform of samples for training: that of evaluation, with augmentation.

    The first nine arguments are the augmentation of a recipe. The random numbers are from PyTorch's default generator.

    **Arguments:**

    - `config`: as for `box_evaluation_transform`.
    - `degrees`: must be 0: a rotated box is no longer tight.
    - `translate`: largest shift, as a fraction of the input's size; a part of the image may move out of the input, at
      most half. Default 0.
    - `scale`: the image is scaled by a random factor between 1 − `scale` and 1 / √`crop`, where 1 fits it inside the
      input; default 0.4.
    - `shear`: must be 0, as `degrees`.
    - `flip`: probability of a horizontal flip; default 0.5.
    - `crop`: smallest area that a larger image shows, as a fraction of the image; 1: images are never scaled up beyond
      the input. Default 0.75.
    - `color_jitter`: random factors within 1 ± this for brightness, contrast and saturation; default 0.
    - `noise`: standard deviation of Gaussian noise on each pixel of the image, where white is 1; default 0.
    - `erase`: probability of random erasing: a rectangle of 2 % to 33 % of the input gets the mean colour; default 0.
    - `aspect`: width ÷ height changes by a random factor between 1 / (1 + `aspect`) and 1 + `aspect`; default 0.1.
    - `vertical_flip`: probability of a vertical flip, for images without an up, such as cells or aerial images;
      default 0.
    - `quarter_turn`: probability of a rotation by 90°, for the same images. All three at 0.5 give the eight
      orientations equally often. Default 0.
    - `min_visible`: smallest visible fraction of a box's area with which it is trained on; default 0.3.

    If the size or shape of the image is random, so is its position in the input; else it lies at the top left.

    **Returns:** a function that transforms a sample as `box_evaluation_transform` does, with these differences:

    - "boxes" are clipped to the visible part of the image. Boxes outside it are dropped, with their "classes" and
      "ignored".
    - "ignored" is True as well for boxes of which less than `min_visible` can be seen: they are neither objects nor
      background.
    - "scale" is vertical and horizontal in the original image; offset, flips and rotation are not recorded.

    **Raises:** ValueError as `box_evaluation_transform`, and for arguments outside their range.
    """
    for name, value in (("degrees", degrees), ("shear", shear)):
        if value:
            raise ValueError(
                f"{name}={value:g}: boxes would no longer be tight around their objects; set {name} to 0 for detection"
            )
    _check_fractions(
        flip=flip, erase=erase, vertical_flip=vertical_flip, quarter_turn=quarter_turn, min_visible=min_visible
    )
    for name, value, accepted, is_accepted in (
        ("translate", translate, "0 up to, not including, 1", 0 <= translate < 1),
        ("scale", scale, "0 up to, not including, 1", 0 <= scale < 1),
        ("crop", crop, "a number above 0 and up to 1", 0 < crop <= 1),
        ("aspect", aspect, "0 or more", 0 <= aspect < math.inf),
        ("color_jitter", color_jitter, "0 or more", 0 <= color_jitter < math.inf),
        ("noise", noise, "0 or more", 0 <= noise < math.inf),
    ):
        if not is_accepted:
            raise ValueError(f"{name}={value:g}: accepted is {accepted}")
    jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else None
    placing = _Placing((1 - scale, crop**-0.5), aspect, translate, flip, vertical_flip, quarter_turn)
    erasing = v2.RandomErasing(erase) if erase else None
    return partial(_augmented, _Input.of(config, noise), placing, jitter, erasing, min_visible)


def collate_boxes(samples: list[Sample]) -> Batch:
    """Makes a batch of samples with different numbers of boxes.

    **Arguments:**

    - `samples`: B transformed samples with the same names.

    **Returns:** a dictionary with these names: "boxes", "classes" and "ignored" are lists of B tensors, all other
    values are stacked as by PyTorch's `default_collate`.
    """
    names = samples[0].keys()
    columns = {name: [sample[name] for sample in samples] for name in names}
    return {name: values if name in LISTED else default_collate(values) for name, values in columns.items()}


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value:g}: accepted are 0 to 1")


@dataclass(frozen=True)
class _Input:
    """The network's input: its height and width in pixels, and how images are converted, scaled and normalised."""

    size: tuple[int, int]
    convert: Callable[[Image.Image], Image.Image]
    resampling: Image.Resampling
    normalize: Callable[[Image.Image], Tensor]

    @staticmethod
    def of(config: dict[str, Any], noise: float = 0.0) -> "_Input":
        channels, height, width = config["input_size"]
        if channels not in MODES:
            raise ValueError(
                f"the network takes {channels} channels; accepted for detection are 1 (grey) and 3 (colour)"
            )
        name = config["interpolation"].upper()
        if name not in Image.Resampling.__members__:
            known = ", ".join(member.lower() for member in Image.Resampling.__members__)
            raise ValueError(f"interpolation {config['interpolation']!r} is unknown; accepted are {known}")
        convert = partial(with_channels, channels, config.get("max_level", MAX_LEVEL))
        return _Input((height, width), convert, Image.Resampling[name], normalization(config, noise))

    def fit(self, height: int, width: int) -> float:
        """The scale at which an image of this size just fits inside the input."""
        return min(self.size[0] / height, self.size[1] / width)

    def canvas(self, patch: Image.Image, left: int, top: int) -> Sample:
        """The image tensor and the mask of a patch at this place; everything around it is 0."""
        pixels = self.normalize(patch)
        rows, columns = slice(top, top + patch.height), slice(left, left + patch.width)
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[rows, columns] = True
        if pixels.shape[1:] == self.size:
            return {"image": pixels, "mask": mask}
        image = pixels.new_zeros(len(pixels), *self.size)
        image[:, rows, columns] = pixels
        return {"image": image, "mask": mask}


@dataclass(frozen=True)
class _Place:
    """Where an image lies, after the rotation: `scaled` is its height and width in pixels of the input, `top` and
    `left` its first row and column, which may be negative. `turned`: rotated by 90° counterclockwise; `mirrored` and
    `upside_down`: its visible part is flipped."""

    scaled: tuple[int, int]
    top: int
    left: int
    turned: bool
    mirrored: bool
    upside_down: bool


@dataclass(frozen=True)
class _Placing:
    """The ranges from which places are drawn; see `box_training_transform`."""

    factors: tuple[float, float]
    aspect: float
    translate: float
    flip: float
    vertical_flip: float
    quarter_turn: float

    def draw(self, given: _Input, height: int, width: int) -> _Place:
        """A random place for an image of this size."""
        by_size, by_aspect, *rest = torch.rand(9).tolist()
        places, shifts, (turn, mirror, invert) = rest[:2], rest[2:4], rest[4:]
        turned = turn < self.quarter_turn
        sides = (width, height) if turned else (height, width)
        smallest, largest = self.factors
        factor = given.fit(*sides) * (smallest + (largest - smallest) * by_size)
        stretch = (1 + self.aspect) ** (by_aspect - 0.5)  # of each side, so width ÷ height changes by its square
        scaled = tuple(
            max(1, round(side * factor * by)) for side, by in zip(sides, (1 / stretch, stretch), strict=True)
        )
        starts = [0, 0]
        if largest > smallest or self.aspect or self.translate:
            for axis, (length, limit) in enumerate(zip(scaled, given.size, strict=True)):
                start = (limit - length) * places[axis] + self.translate * limit * (2 * shifts[axis] - 1)
                shown = math.ceil(min(length, limit) / 2)
                starts[axis] = min(max(round(start), shown - length), limit - shown)
        top, left = starts
        return _Place((scaled[0], scaled[1]), top, left, turned, mirror < self.flip, invert < self.vertical_flip)


def _evaluated(given: _Input, sample: Sample) -> Sample:
    image, boxes = _parts(sample)
    fit = given.fit(image.height, image.width)
    height, width = (
        min(limit, max(1, round(side * fit))) for side, limit in zip(image.size[::-1], given.size, strict=True)
    )
    patch = given.convert(image)
    if patch.size != (width, height):
        patch = patch.resize((width, height), given.resampling)
    scale = torch.tensor([height / image.height, width / image.width])
    size = torch.tensor([image.height, image.width])
    changed = given.canvas(patch, 0, 0) | {"size": size, "scale": scale}
    if boxes is not None:
        changed["boxes"] = _boxes(boxes * scale[[1, 0, 1, 0]], given)
    return sample | changed


def _augmented(
    given: _Input,
    placing: _Placing,
    jitter: Callable[[Image.Image], Image.Image] | None,
    erasing: v2.RandomErasing | None,
    min_visible: float,
    sample: Sample,
) -> Sample:
    image, boxes = _parts(sample)
    if boxes is None:
        raise ValueError(f'training needs "boxes", "classes" and "ignored"; the sample has {", ".join(sample)}')
    place = placing.draw(given, image.height, image.width)
    height, width = place.scaled
    left, right = max(0, place.left), min(given.size[1], place.left + width)
    top, bottom = max(0, place.top), min(given.size[0], place.top + height)
    shown = (left, top, right, bottom)
    patch = _patch(given, given.convert(image), place, shown)
    changed = given.canvas(patch if jitter is None else jitter(patch), left, top)
    whole, scale = _moved(boxes, place, shown, image.height, image.width)
    low, high = torch.tensor([left, top] * 2), torch.tensor([right, bottom] * 2)
    visible = whole.clamp(low, high)
    area = _area(whole)
    seen = _area(visible)
    if erasing is not None and torch.rand(1).item() < erasing.p:
        rectangle = erasing.make_params([changed["image"]])
        if rectangle["v"] is not None:  # else no rectangle was found that fits
            changed["image"] = erasing.transform(changed["image"], rectangle)
            seen = seen - _area(_common(visible, rectangle))
    kept = _area(visible) > 0
    ignored = sample["ignored"] | (seen < min_visible * area)
    return (
        sample
        | changed
        | {
            "boxes": _boxes(visible[kept], given),
            "classes": sample["classes"][kept],
            "ignored": ignored[kept],
            "size": torch.tensor([image.height, image.width]),
            "scale": scale,
        }
    )


def _parts(sample: Sample) -> tuple[Image.Image, Tensor | None]:
    """The image of a sample and its boxes (N, 4) as a plain tensor; None without boxes."""
    image, boxes = sample["image"], sample.get("boxes")
    if not isinstance(image, Image.Image):
        raise ValueError(f"the image is a {type(image).__name__}; accepted for detection are PIL images")
    if boxes is None:
        return image, None
    if not isinstance(boxes, tv_tensors.BoundingBoxes) or boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
        kind = boxes.format.value if isinstance(boxes, tv_tensors.BoundingBoxes) else type(boxes).__name__
        raise ValueError(f"the boxes are {kind}; accepted are tv_tensors.BoundingBoxes with the format XYXY")
    if tuple(boxes.canvas_size) != image.size[::-1]:
        height, width = boxes.canvas_size
        raise ValueError(
            f"the boxes belong to {height} × {width} pixels, but the image has {image.height} × {image.width}; "
            "boxes must be in pixels of the upright image"
        )
    return image, boxes.as_subclass(Tensor).float()


def _boxes(boxes: Tensor, given: _Input) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=given.size)


def _patch(given: _Input, image: Image.Image, place: _Place, shown: tuple[int, int, int, int]) -> Image.Image:
    """The visible part of the image. It is cut out and scaled in one call, so it is resampled once, with antialiasing;
    flips and rotation by 90° do not resample."""
    left, top, right, bottom = shown
    sides = (image.width, image.height) if place.turned else (image.height, image.width)
    per_row, per_column = (side / length for side, length in zip(sides, place.scaled, strict=True))
    box = (
        (left - place.left) * per_column,
        (top - place.top) * per_row,
        min(sides[1], (right - place.left) * per_column),
        min(sides[0], (bottom - place.top) * per_row),
    )
    size = (right - left, bottom - top)
    if place.turned:
        size, box = size[::-1], (max(0.0, image.width - box[3]), box[0], image.width - box[1], box[2])
    patch = image if box == (0, 0, *image.size) and size == image.size else image.resize(size, given.resampling, box)
    if place.turned:
        patch = patch.transpose(Image.Transpose.ROTATE_90)
    if place.mirrored:
        patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return patch.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if place.upside_down else patch


def _moved(
    boxes: Tensor, place: _Place, shown: tuple[int, int, int, int], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) in an image of this size, moved with it and not clipped; and the scale (2,), vertical and
    horizontal in the image."""
    if place.turned:
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack([top, width - right, bottom, width - left], -1)
        height, width = width, height
    scale = torch.tensor([place.scaled[0] / height, place.scaled[1] / width])
    boxes = boxes * scale[[1, 0, 1, 0]] + torch.tensor([place.left, place.top] * 2)
    if place.mirrored:
        boxes[:, 0::2] = shown[0] + shown[2] - boxes[:, [2, 0]]
    if place.upside_down:
        boxes[:, 1::2] = shown[1] + shown[3] - boxes[:, [3, 1]]
    return boxes, scale.flip(0) if place.turned else scale


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp_min(0) * (boxes[:, 3] - boxes[:, 1]).clamp_min(0)


def _common(boxes: Tensor, rectangle: dict[str, Any]) -> Tensor:
    """The part of each box (N, 4) inside the rectangle of random erasing; without area if there is none."""
    left, top = rectangle["j"], rectangle["i"]
    right, bottom = left + rectangle["w"], top + rectangle["h"]
    low = boxes[:, :2].clamp_min(torch.tensor([left, top]))
    high = boxes[:, 2:].clamp_max(torch.tensor([right, bottom]))
    return torch.cat([low, high], 1)
