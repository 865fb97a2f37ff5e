"""pytest tests/data/test_transforms.py: what a network is shown, against Pillow and arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from vismoe.data import evaluation_transform, training_transform


def config(size=(3, 32, 32), interpolation="bicubic", crop_pct=1.0):
    grey = (0.5,) * size[0]
    return {"input_size": size, "mean": grey, "std": grey, "interpolation": interpolation, "crop_pct": crop_pct}


def of_images(transform):
    """A transform of samples as a function of one image."""
    return lambda image: transform({"image": image})["image"]


def photograph(width, height):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, (x * y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (40, 90), (20, 24)])
def test_evaluation_scales_and_crops(interpolation, crop_pct, width, height):
    """As Pillow does it, up and down: the short side to 32 / crop_pct, rounded down, then the middle 32 × 32."""
    image = photograph(width, height)
    side = int(32 / crop_pct)
    factor = side / min(width, height)
    size = [side if length == min(width, height) else int(factor * length) for length in (width, height)]
    resized = image.resize(size, getattr(Image.Resampling, interpolation.upper()))
    left, top = (round((length - 32) / 2) for length in size)
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    seen = of_images(evaluation_transform(config(interpolation=interpolation, crop_pct=crop_pct)))(image)
    np.testing.assert_array_equal(((seen * 0.5 + 0.5) * 255).round().permute(1, 2, 0).numpy(), expected)


def test_a_image_of_the_right_size_is_only_normalised():
    """Nothing is resampled where nothing need be: (v / 255 − mean) / std."""
    image = photograph(32, 32)
    expected = torch.from_numpy((np.asarray(image) / 255 - 0.5) / 0.5).permute(2, 0, 1).float()
    torch.testing.assert_close(of_images(evaluation_transform(config()))(image), expected, rtol=0, atol=1e-6)


def test_oblong_networks_get_oblong_images():
    """A network of other height than width is shown images of its shape, cropped, not squeezed: a disc stays one."""
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)
    disc = Image.fromarray((255 * (x**2 + y**2 > 10**2)).astype(np.uint8))
    dark = of_images(evaluation_transform(config((1, 16, 32))))(disc)[0] < 0
    assert dark.shape == (16, 32)
    assert dark.any(0).sum() == dark.any(1).sum() == 10


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize(("width", "height"), [(48, 48), (32, 32), (36, 36), (64, 40)])
def test_training_without_augmentation_is_evaluation(width, height, crop_pct):
    """With every range 0 an image is shown as at evaluation, cut as much, too."""
    image, given = photograph(width, height), config(crop_pct=crop_pct)
    torch.testing.assert_close(
        of_images(training_transform(given))(image), of_images(evaluation_transform(given))(image), rtol=0, atol=1e-5
    )


def test_what_comes_in_from_outside_is_white():
    """Where a turned and shifted black sheet uncovers its ground, that is white in normalised values: 1."""
    transform = of_images(training_transform(config((1, 32, 32)), degrees=45.0, translate=0.5, scale=0.0, shear=0.0))
    torch.manual_seed(0)
    sheets = torch.stack([transform(Image.new("L", (32, 32), 0)) for _ in range(20)])
    torch.testing.assert_close(sheets.amax((1, 2, 3)), torch.ones(20), rtol=0, atol=1e-6)


def test_training_images_vary():
    """Augmentation does something: two draws of one image differ."""
    transform = of_images(training_transform(config(), degrees=10.0, translate=0.08, scale=0.1, shear=5.0))
    image = photograph(32, 32)
    assert not torch.equal(transform(image), transform(image))


def test_colours_move_within_their_range():
    """color_jitter changes a plain colour's brightness by a factor within 1 ± 0.4, and saturation and contrast too."""
    transform, plain = (
        of_images(training_transform(config(), color_jitter=0.4)),
        Image.new("RGB", (32, 32), (100, 50, 50)),
    )
    torch.manual_seed(0)
    drawn = torch.stack([transform(plain)[:, 0, 0] for _ in range(200)]) / 2 + 0.5
    red, green = drawn[:, 0] * 255, drawn[:, 1] * 255
    grey = 0.299 * red + 0.587 * green + 0.114 * green
    assert grey.min() < 50
    assert grey.max() > 75
    assert grey.min() > 64.9 * 0.6 - 2
    assert grey.max() < 64.9 * 1.4 + 2
    assert (red - green).min() > 50 * 0.36 * 0.6
    assert (red - green).std() > 5


def test_noise_has_its_spread():
    """On a grey image noise of 0.1 has that standard deviation, of pixels in 0…1, and no value leaves the range."""
    torch.manual_seed(0)
    transform = of_images(training_transform(config((3, 64, 64)), noise=0.1))
    pixels = transform(Image.new("RGB", (64, 64), (128, 128, 128))) / 2 + 0.5
    assert abs(pixels.std() - 0.1) < 0.003
    assert abs(pixels.mean() - 128 / 255) < 0.003
    black = transform(Image.new("RGB", (64, 64), (0, 0, 0))) / 2 + 0.5
    assert black.min() >= 0
    assert (black == 0).float().mean() > 0.4


def test_erasing_paints_a_rectangle():
    """Half the images keep all pixels; of the others a rectangle of 2 % to 33 % has the mean colour, 0."""
    torch.manual_seed(0)
    transform = of_images(training_transform(config(), erase=0.5))
    shares = torch.tensor(
        [(transform(Image.new("RGB", (32, 32), (255, 255, 255))) == 0).float().mean() for _ in range(200)]
    )
    erased = shares[shares > 0]
    assert 75 < len(erased) < 125
    assert erased.min() > 0.01
    assert 0.25 < erased.max() < 0.36


def test_half_are_mirrored():
    """`flip=0.5`: about half the draws of an image are its mirror image, the others the image."""
    torch.manual_seed(0)
    transform, image = of_images(training_transform(config(), flip=0.5)), photograph(32, 32)
    shown = of_images(evaluation_transform(config()))(image)
    draws = torch.stack([transform(image) for _ in range(64)])
    plain, mirrored = (((draws - like).abs().amax((1, 2, 3)) < 1e-5).sum() for like in (shown, shown.flip(2)))
    assert plain + mirrored == 64
    assert 20 < mirrored < 44


def test_crops_are_of_any_size_and_nearly_square():
    """`crop=0.05`, as the reference crops: from 5 % of the area up to all, of shapes from 3:4 to 4:3. Red and green of
    the image are column and row, so that a crop's edges can be read off it."""
    torch.manual_seed(0)
    transform, image = of_images(training_transform(config(interpolation="bilinear"), crop=0.05)), photograph(96, 96)
    draws = torch.stack([transform(image)[:2] for _ in range(64)])
    spans = (draws.amax((2, 3)) - draws.amin((2, 3))) / 2
    area, shape = spans.prod(1), spans[:, 0] / spans[:, 1]
    assert 0.02 < area.min() < 0.2
    assert 0.7 < area.max() <= 1
    assert 0.7 < shape.min() < 0.9 < 1.1 < shape.max() < 1.43
