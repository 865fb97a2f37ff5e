"""pytest tests/data/test_cached.py"""

import numpy as np
import pytest
import torch
from PIL import Image

from vismoe.data import ImageSet, cache_bytes, cached_at_scale, cached_images, evaluation_transform

IMAGES = [
    Image.effect_noise((100, 60), 80).convert("RGB"),
    Image.effect_noise((20, 30), 80),
    Image.new("RGBA", (90, 90), (200, 0, 0, 0)),
    Image.fromarray(np.full((80, 80), 32896, np.uint16)),
    Image.new("P", (70, 140), 3),
]


def test_images_are_decoded_once_and_kept_small():
    """The short side is at most what was said, small ones are untouched, transparency is white, 16 bits are 8."""
    asked = []

    def image(index):
        asked.append(index)
        return IMAGES[index]

    images = ImageSet(torch.arange(5), image)
    kept = cached_images(images, 30)
    first = [kept.image(index) for index in range(5)]
    again = [kept.image(index) for index in range(5)]
    assert asked == [0, 1, 2, 3, 4]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert [each.size for each in first] == [(50, 30), (20, 30), (30, 30), (30, 30), (30, 60)]
    assert first[2].getpixel((5, 5)) == (255, 255, 255)
    assert first[3].getpixel((5, 5)) == 128
    assert np.array_equal(np.asarray(first[1]), np.asarray(IMAGES[1]))
    means = [float(np.asarray(each, dtype=np.float32).mean()) for each in (first[0], IMAGES[0])]
    assert abs(means[0] - means[1]) < 2  # a box filter keeps the mean
    assert cache_bytes(images, 30) >= sum(len(each.tobytes()) for each in first[:1])
    assert kept.subset([4, 0]).image(1) is first[0]


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_kept_for_evaluation_are_evaluated_as_they_were(crop_pct, channels):
    """What a network is shown of an image kept in its scale is bit-equal to what it is shown of the image."""
    size, statistics = (channels, 28, 28), {"mean": (0.4,) * channels, "std": (0.3,) * channels}
    config = {"input_size": size, "interpolation": "bicubic", "crop_pct": crop_pct, **statistics}
    long = Image.effect_noise((3000, 40), 80)
    images = ImageSet(torch.arange(6), [*IMAGES, long].__getitem__)
    kept, transform = cached_at_scale(images, config), evaluation_transform(config)
    for index in range(6):
        assert torch.equal(transform(kept.sample(index))["image"], transform(images.sample(index))["image"])
    assert kept.image(0) is kept.image(0)
    assert min(kept.image(0).size) == int(28 / crop_pct)
