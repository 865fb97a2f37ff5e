"""Transforms of images with boxes, for detection: letterboxing with a mask, and augmentation of images and boxes."""

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
from .placement import Placement, PlacementRanges, letterbox
from .transforms import MODES, Transform, normalization, with_channels

INFINITY = float("inf")
LISTED = ("boxes", "classes", "ignored")
"""The values of a sample that have one row for each box. A batch has lists of them."""


def box_evaluation_transform(config: dict[str, Any]) -> Transform:
    """Creates the transform of samples for evaluation and prediction: letterbox, normalise.

    The image is scaled to fit inside the network's input, keeps its aspect ratio, and lies at the top left.

    **Arguments:**

    - `config`: as for `evaluation_transform`; crop_pct and crop_mode are not used.

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

    The arguments from `degrees` to `erase` are the augmentation of a recipe. Random numbers are drawn from PyTorch's
    default generator.

    **Arguments:**

    - `config`: as for `box_evaluation_transform`.
    - `degrees`: must be 0: a rotated box is no longer tight.
    - `translate`: largest shift, as a fraction of the input's size; a part of the image may move out of the input, at
      most half. Default 0.
    - `scale`: the image is scaled by a random factor between 1 − `scale` and 1 / √`crop`, where 1 fits it inside the
      input; default 0.4.
    - `shear`: must be 0, as `degrees`.
    - `flip`: probability of a horizontal flip; default 0.5.
    - `crop`: smallest fraction of an image's area that stays visible when the image is scaled to be larger than the
      input; 1: no image is. Default 0.75.
    - `color_jitter`, `noise`, `erase`: as for `training_transform`, default 0. Padding gets no colour and no noise; an
      erased rectangle is 2 % to 33 % of the input.
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
    - "ignored" also becomes True for boxes of which less than `min_visible` is visible, because of the crop or random
      erasing: they are neither objects nor background.
    - "scale" is vertical and horizontal in the original image; offset, flips and rotation are not recorded.

    **Raises:** ValueError as `box_evaluation_transform`, and for arguments outside their range.
    """
    for name, value in (("degrees", degrees), ("shear", shear)):
        if value:
            raise ValueError(
                f"{name}={value:g}: boxes would no longer be tight around their objects; set {name} to 0 for detection"
            )
    fractions = {"flip": flip, "erase": erase, "vertical_flip": vertical_flip, "quarter_turn": quarter_turn}
    for name, value, accepted, is_accepted in (
        ("translate", translate, "at least 0 and below 1", 0 <= translate < 1),
        ("scale", scale, "at least 0 and below 1", 0 <= scale < 1),
        ("crop", crop, "above 0 and up to 1", 0 < crop <= 1),
        ("aspect", aspect, "0 or more", 0 <= aspect < INFINITY),
        ("color_jitter", color_jitter, "0 or more", 0 <= color_jitter < INFINITY),
        ("noise", noise, "0 or more", 0 <= noise < INFINITY),
        ("min_visible", min_visible, "0 to 1", 0 <= min_visible <= 1),
        *((name, value, "0 to 1", 0 <= value <= 1) for name, value in fractions.items()),
    ):
        if not is_accepted:
            raise ValueError(f"{name}={value:g}: accepted is a number, {accepted}")
    ranges = PlacementRanges((1 - scale, crop**-0.5), aspect, translate, flip, vertical_flip, quarter_turn)
    erasing = v2.RandomErasing(erase) if erase else None
    return partial(_augmented, _Input.of(config, color_jitter, noise), ranges, erasing, min_visible)


def collate_boxes(samples: list[Sample]) -> Batch:
    """Makes a batch of samples with different numbers of boxes.

    **Arguments:**

    - `samples`: B transformed samples with the same names.

    **Returns:** a dictionary with these names: "boxes", "classes" and "ignored" are lists of B tensors, all other
    values are stacked as by PyTorch's `default_collate`.
    """
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {name: _listed(values) if name in LISTED else default_collate(values) for name, values in columns.items()}


def _listed(values: list[Tensor]) -> list[Tensor]:
    """The same tensors in one storage: a data worker sends each storage as an open file, and their number is limited
    (often to 1024)."""
    lengths = [len(value) for value in values]
    parts = torch.cat([value.as_subclass(Tensor) for value in values]).split(lengths)
    return [
        tv_tensors.wrap(part, like=value) if isinstance(value, tv_tensors.TVTensor) else part
        for part, value in zip(parts, values, strict=True)
    ]


@dataclass(frozen=True)
class _Input:
    """The network's input: its height and width in pixels, and how images are converted, scaled, changed in colour and
    normalised."""

    size: tuple[int, int]
    convert: Callable[[Image.Image], Image.Image]
    resampling: Image.Resampling
    jitter: Callable[[Image.Image], Image.Image] | None
    normalize: Callable[[Image.Image], Tensor]

    @staticmethod
    def of(config: dict[str, Any], color_jitter: float = 0.0, noise: float = 0.0) -> "_Input":
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
        jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else None
        return _Input((height, width), convert, Image.Resampling[name], jitter, normalization(config, noise))

    def show(self, image: Image.Image, place: Placement) -> Sample:
        """The image at this place: "image", "mask", "size" and "scale" of the transformed sample."""
        patch = place.cut(self.convert(image), self.resampling)
        pixels = self.normalize(patch if self.jitter is None else self.jitter(patch))
        left, top, right, bottom = place.visible
        canvas = pixels.new_zeros(len(pixels), *self.size)
        canvas[:, top:bottom, left:right] = pixels
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return {"image": canvas, "mask": mask, "size": torch.tensor(place.original), "scale": place.scale}


def _evaluated(given: _Input, sample: Sample) -> Sample:
    image, boxes = _parts(sample)
    place = letterbox(image.size[::-1], given.size)
    changed = given.show(image, place)
    return sample | changed | ({} if boxes is None else {"boxes": _boxes(place.move(boxes), given)})


def _augmented(
    given: _Input, ranges: PlacementRanges, erasing: v2.RandomErasing | None, min_visible: float, sample: Sample
) -> Sample:
    image, boxes = _parts(sample)
    if boxes is None:
        raise ValueError(f'training needs "boxes", "classes" and "ignored"; the sample has {", ".join(sample)}')
    place = ranges.draw(image.size[::-1], given.size)
    changed = given.show(image, place)
    left, top, right, bottom = place.visible
    whole = place.move(boxes)
    visible = whole.clamp(torch.tensor([left, top] * 2), torch.tensor([right, bottom] * 2))
    seen = _area(visible)
    kept = seen > 0
    if erasing is not None and torch.rand(1).item() < erasing.p:
        rectangle = erasing.make_params([changed["image"]])
        if rectangle["v"] is not None:  # else no rectangle was found that fits
            changed["image"] = erasing.transform(changed["image"], rectangle)
            seen = seen - _area(_common(visible, rectangle))
    ignored = sample["ignored"] | (seen < min_visible * _area(whole))
    changed |= {"boxes": _boxes(visible[kept], given), "classes": sample["classes"][kept], "ignored": ignored[kept]}
    return sample | changed


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


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp_min(0) * (boxes[:, 3] - boxes[:, 1]).clamp_min(0)


def _common(boxes: Tensor, rectangle: dict[str, Any]) -> Tensor:
    """The part of each box (N, 4) inside the rectangle of random erasing; without area if there is none."""
    left, top = rectangle["j"], rectangle["i"]
    right, bottom = left + rectangle["w"], top + rectangle["h"]
    low = boxes[:, :2].clamp_min(torch.tensor([left, top]))
    high = boxes[:, 2:].clamp_max(torch.tensor([right, bottom]))
    return torch.cat([low, high], 1)
