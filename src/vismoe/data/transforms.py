"""Transforms of samples. Images are scaled, cropped, augmented and normalised; boxes and masks are moved with them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .image_set import Sample
from .images import MAX_LEVEL, eight_bits, flatten_alpha

Transform = Callable[[Sample], Sample]
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for each number of channels of a network."""
LONGEST = 20
"""Largest aspect ratio of an image; longer images are cropped."""


def evaluation_transform(config: dict[str, Any]) -> Transform:
    """Creates the transform of samples for evaluation and prediction: resize, centre crop, normalise.

    PIL images use timm's own transform, so published weights are evaluated as they were published. Tensors use the same
    steps of torchvision.

    **Arguments:**

    - `config`: timm's data configuration of the network: input_size (C, H, W), mean, std, interpolation, crop_pct; and
      max_level, the level of 16-bit PIL images that is white, default 65,535.

    **Returns:** a function that transforms a sample:

    - PIL images, and `tv_tensors.Image` (C, any height, any width; integers, or floats in 0…1), become float tensors
      (C, H, W). PIL images are converted to grey or colour first, depending on C.
    - Boxes and masks (`tv_tensors`) are moved with the images and keep their types. Boxes outside the crop are kept,
      with area 0.
    - Other values are unchanged.

    It raises ValueError for an image whose number of channels does not fit the network.

    **Raises:** ValueError if timm cannot use the configuration.
    """
    try:
        single = v2.Compose([_mode_of(config), create_transform(**_of_timm(config))])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the model's data configuration {config} cannot be used: {error!r}") from error
    return partial(_transformed, single, partial(_evaluated, config, single))


def evaluation_scale(config: dict[str, Any]) -> Callable[[Image.Image], Image.Image]:
    """Creates a function that converts and resizes a PIL image as at evaluation, without the centre crop.

    `evaluation_transform` gives bit-identical results for the original image and for the image that this function
    returns.

    **Arguments:**

    - `config`: as for `evaluation_transform`.
    """
    whole, *_ = create_transform(**_of_timm(config)).transforms
    return v2.Compose([_mode_of(config), whole])


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
    """Creates the transform of samples for training: that of evaluation, with augmentation.

    All images, boxes and masks of a sample get the same random augmentation, except noise, which is drawn for each
    image. Pixels from outside the image, after rotation, shear, shift or scale, are white (1 in tensors); 0 in masks.

    **Arguments:**

    - `config`: as for `evaluation_transform`.
    - `degrees`: largest rotation, in degrees, in either direction; default 0.
    - `translate`: largest shift, as a fraction of the image size; default 0.
    - `scale`: random scale factor within 1 ± this; default 0.
    - `shear`: largest shear, in degrees, in either direction; default 0.
    - `flip`: probability of a horizontal flip; default 0.
    - `crop`: smallest area of the random crop, as a fraction of the image, with an aspect ratio from 3:4 to 4:3; all
      images of a sample must have one size. Default 1: centre crop, no random crop.
    - `color_jitter`: random factors within 1 ± this for brightness, contrast and saturation; for 1 or 3 channels only;
      default 0.
    - `noise`: standard deviation of Gaussian noise on each pixel, where white is 1; default 0.
    - `erase`: probability of random erasing: a rectangle of 2 % to 33 % of the area gets the mean colour (Zhong et al.
      2017); default 0.

    **Returns:** a function that transforms a sample, as `evaluation_transform` does.

    **Raises:** ValueError for color jitter with another number of channels.
    """
    channels, *size = config["input_size"]
    if color_jitter and channels not in MODES:
        raise ValueError(f"color_jitter={color_jitter:g}: the network takes {channels} channels, accepted are 1 and 3")
    interpolation = InterpolationMode(config["interpolation"])
    scaled = [int(length / config["crop_pct"]) for length in size]
    square = scaled[0] == scaled[1]  # timm rounds the long side differently for square sizes
    resize = (
        v2.Resize(scaled[0], interpolation) if square else ResizeKeepRatio(scaled, interpolation=interpolation.value)
    )
    centre = v2.Compose([resize, v2.CenterCrop(size)])
    random_crop = None if crop == 1 else v2.RandomResizedCrop(size, (crop, 1.0), (3 / 4, 4 / 3), interpolation)
    affine = v2.RandomAffine(
        degrees,
        translate=(translate, translate),
        scale=(1 - scale, 1 + scale),
        shear=shear,
        interpolation=InterpolationMode.BILINEAR,
        fill={"others": 255, tv_tensors.Image: 1.0, tv_tensors.Mask: 0},
    )
    normalize, erasing = normalization(config, noise), v2.RandomErasing(erase)
    # Applied to PIL images before they become tensors: for small images Pillow is several times faster.
    augmentations = [
        *([v2.RandomHorizontalFlip(flip)] if flip else []),
        *([affine] if degrees or translate or scale or shear else []),
        *([v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []),
    ]
    single = v2.Compose(
        [
            _mode_of(config),
            random_crop or (partial(_of_size, tuple(size), centre) if scaled == size else centre),
            *augmentations,
            normalize,
            *([erasing] if erase else []),
        ]
    )
    joint = v2.Compose(
        [
            partial(_each, partial(_prepared, config)),
            *([_require_one_size, random_crop] if random_crop else [partial(_each, partial(_centred, config))]),
            partial(_each, _as_floats),
            *(partial(_moved_boxes, step) if step is affine else step for step in augmentations),
            partial(_each, normalize),
            *([partial(_erased, erasing)] if erase else []),
        ]
    )
    return partial(_transformed, single, joint)


def _transformed(single: Callable[[Image.Image], Any], joint: Callable[[Sample], Sample], sample: Sample) -> Sample:
    """The sample with its images, boxes and masks transformed.

    `single` transforms a single PIL image, which is faster; `joint` transforms several values.
    """
    spatial = {name: value for name, value in sample.items() if isinstance(value, Image.Image | tv_tensors.TVTensor)}
    if not spatial:
        return sample
    if len(spatial) == 1:
        ((name, value),) = spatial.items()
        if isinstance(value, Image.Image):
            return sample | {name: single(value)}
    return sample | joint(spatial)


def _each(change: Callable[[Any], Any], spatial: Sample) -> Sample:
    return {name: change(value) for name, value in spatial.items()}


def _evaluated(config: dict[str, Any], single: Callable[[Image.Image], Any], spatial: Sample) -> Sample:
    """The images, boxes and masks of a sample, transformed for evaluation."""
    normalize, (_, *size) = normalization(config, 0.0), config["input_size"]

    def change(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return single(value)
        value = _scaled(config, config.get("crop_mode"), _prepared(config, value))
        # Normalised before the crop: a crop larger than the image is padded with 0, which is then the mean colour.
        return functional.center_crop(normalize(_as_floats(value)), size)

    return _each(change, spatial)


def _prepared(config: dict[str, Any], value: Any) -> Any:
    """Converts an image to the channels of the network, and crops values with extreme aspect ratios."""
    channels = config["input_size"][0]
    if isinstance(value, Image.Image):
        return _mode_of(config)(value)
    if isinstance(value, tv_tensors.Image):
        if value.ndim != 3 or value.shape[0] != channels:
            raise ValueError(
                f"an image tensor has shape {tuple(value.shape)}, but the network takes {channels} channels: expected "
                f"({channels}, height, width)"
            )
        if value.dtype not in (torch.uint8, torch.float32):
            value = functional.to_dtype(value, torch.float32, scale=True)
    height, width = functional.get_size(value)
    left, top, right, bottom = _middle(width, height)
    if (right - left, bottom - top) == (width, height):
        return value
    return functional.crop(value, top, left, bottom - top, right - left)


def _centred(config: dict[str, Any], value: Any) -> Any:
    return functional.center_crop(_scaled(config, None, value), config["input_size"][1:])


def _scaled(config: dict[str, Any], crop_mode: str | None, value: Any) -> Any:
    """Resizes a value as timm's evaluation transform does before the centre crop."""
    target = [math.floor(length / config["crop_pct"]) for length in config["input_size"][1:]]
    if crop_mode == "squash":
        size = target
    elif crop_mode != "border" and target[0] == target[1]:
        size = target[:1]
    else:
        lengths = functional.get_size(value)
        ratios = [length / side for length, side in zip(lengths, target, strict=True)]
        ratio = max(ratios) if crop_mode == "border" else min(ratios)
        size = [round(length / ratio) for length in lengths]
    return functional.resize(value, size, InterpolationMode(config["interpolation"]))


def _require_one_size(spatial: Sample) -> Sample:
    """Returns its argument.

    **Raises:** ValueError if the values have different sizes, so one random crop does not fit all.
    """
    sizes = {name: tuple(functional.get_size(value)) for name, value in spatial.items()}
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{name} {height} × {width}" for name, (height, width) in sizes.items())
        raise ValueError(
            f"a sample whose values have different sizes ({given}) cannot be randomly cropped: resize them to one "
            "size, or set crop to 1"
        )
    return spatial


def _moved_boxes(affine: v2.RandomAffine, spatial: Sample) -> Sample:
    """A sample after an affine transform. Boxes without area before it have none after it: a box outside the image is
    clipped to a line at the border, and a rotation would give that line an area."""
    moved = affine(spatial)
    for name, original in spatial.items():
        if isinstance(original, tv_tensors.BoundingBoxes) and not tv_tensors.is_rotated_bounding_format(
            original.format
        ):
            empty = functional.convert_bounding_box_format(original, new_format="CXCYWH")[..., 2:].amin(-1) <= 0
            corners = functional.convert_bounding_box_format(moved[name], new_format="XYXY")
            corners[empty, 2:] = corners[empty, :2]
            moved[name] = functional.convert_bounding_box_format(corners, new_format=original.format)
    return moved


def _as_floats(value: Any) -> Any:
    """Converts an image tensor to floats in 0…1; returns other values unchanged."""
    return functional.to_dtype(value, torch.float32, scale=True) if isinstance(value, tv_tensors.Image) else value


def _erased(erasing: v2.RandomErasing, spatial: Sample) -> Sample:
    """Erases, with the given probability, the same random rectangle in all images of a sample."""
    images = {name: value for name, value in spatial.items() if not isinstance(value, tv_tensors.TVTensor)}
    if not images or torch.rand(1) >= erasing.p:
        return spatial
    first, *_ = images.values()
    rectangle = erasing.make_params([first])
    return spatial | {name: erasing.transform(value, rectangle) for name, value in images.items()}


def _of_size(size: tuple[int, int], change: Callable[[Any], Any], image: Image.Image) -> Image.Image:
    """Applies `change` to an image unless it has the size (height, width) already."""
    return image if image.size == size[::-1] else change(image)


def _of_timm(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a data configuration that timm accepts."""
    return {name: value for name, value in config.items() if name != "max_level"}


def _mode_of(config: dict[str, Any]) -> Callable[[Image.Image], Image.Image]:
    """A function that converts a PIL image to the channels of a network."""
    return partial(_as_mode, config["input_size"][0], config.get("max_level", MAX_LEVEL))


def _as_mode(channels: int, max_level: int, image: Image.Image) -> Image.Image:
    return with_channels(channels, max_level, _cropped_to_middle(image))


def with_channels(channels: int, max_level: int, image: Image.Image) -> Image.Image:
    """Converts a PIL image to 8 bits and the given number of channels, on a white background if it is transparent.

    **Arguments:**

    - `channels`: 1 (grey) or 3 (colour).
    - `max_level`: the level of 16-bit images that becomes white.
    - `image`: the image, in any mode.

    **Raises:** ValueError for another number of channels.
    """
    if channels not in MODES:
        raise ValueError(
            f"the network takes {channels} channels, but PIL images have 1 (grey) or 3 (colour); use tv_tensors.Image "
            "for other numbers of channels"
        )
    return flatten_alpha(eight_bits(image, max_level)).convert(MODES[channels])


def _cropped_to_middle(image: Image.Image) -> Image.Image:
    middle = _middle(*image.size)
    return image if middle == (0, 0, *image.size) else image.crop(middle)


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """The middle of an image (left, top, right, bottom), at most LONGEST times as long as its short side.

    Extreme aspect ratios are cropped, because resizing by the short side would need a lot of memory.
    """
    longest = LONGEST * min(width, height)
    left, top = ((length - min(length, longest)) // 2 for length in (width, height))
    return left, top, left + min(width, longest), top + min(height, longest)


def normalization(config: dict[str, Any], noise: float) -> Callable[[Any], Any]:
    """Creates a function that makes a normalised float tensor (C, H, W) of a PIL image or an image tensor.

    **Arguments:**

    - `config`: timm's data configuration of the network.
    - `noise`: standard deviation of Gaussian noise on each pixel before normalisation, where white is 1.
    """
    channels = config["input_size"][0]
    mean, std = (list(map(float, config[name]))[:channels] for name in ("mean", "std"))
    return partial(_normalized, mean, std, noise)


def _normalized(mean: list[float], std: list[float], noise: float, value: Any) -> Any:
    """Does the same as torchvision's ToImage, ToDtype, GaussianNoise and Normalize, but faster: these search for boxes
    at every step. Boxes and masks are unchanged."""
    if isinstance(value, Image.Image):
        pixels = functional.to_dtype_image(functional.pil_to_tensor(value), torch.float32, scale=True)
    elif isinstance(value, tv_tensors.Image):
        pixels = value.as_subclass(Tensor)
    else:
        return value
    if noise:
        pixels = (pixels + noise * torch.randn_like(pixels)).clamp(0, 1)
    return functional.normalize_image(pixels, mean, std)
