"""pytest tests/data/test_cached.py"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vismoe.data import ImageSet, cache_bytes, cached_at_scale, cached_images, cached_with_boxes, evaluation_transform

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


def test_boxes_and_masks_are_kept_with_their_images():
    """At the cached size an object is where its box is: pixels tell. Small images, classes and empty images stay."""
    image = Image.new("L", (640, 320))
    image.paste(255, (64, 32, 256, 160))
    boxes = tv_tensors.BoundingBoxes([[64.0, 32, 256, 160]], format="XYXY", canvas_size=(320, 640))
    mask = tv_tensors.Mask(torch.from_numpy(np.asarray(image) > 0))
    none = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(20, 30))
    small = Image.new("L", (30, 20))
    further = {
        "boxes": [boxes, none].__getitem__,
        "classes": [torch.tensor([3]), torch.zeros(0, dtype=torch.int64)].__getitem__,
        "mask": [mask, tv_tensors.Mask(torch.zeros(20, 30, dtype=torch.bool))].__getitem__,
    }
    images = ImageSet(torch.ones(2, 4, dtype=torch.bool), [image, small].__getitem__, further=further)
    kept = cached_with_boxes(images, 160)
    sample = kept.sample(0)
    assert sample["image"].size == (160, 80)
    assert (sample["boxes"].canvas_size, sample["boxes"].dtype) == ((80, 160), torch.float32)
    assert tuple(sample["boxes"][0].tolist()) == sample["image"].getbbox() == (16, 8, 64, 40)
    assert torch.equal(sample["mask"], torch.from_numpy(np.asarray(sample["image"]) > 0))
    assert sample["classes"].tolist() == [3]
    assert kept.sample(0)["image"] is sample["image"]
    unchanged = kept.subset([1]).sample(0)
    assert (unchanged["image"].size, unchanged["boxes"].canvas_size, len(unchanged["boxes"])) == ((30, 20), (20, 30), 0)
    with pytest.raises(ValueError, match="cannot be cached"):
        cached_with_boxes(ImageSet(torch.arange(1), [image].__getitem__, further={"image": lambda index: image}), 160)


@pytest.mark.parametrize("size", [(333, 77), (77, 333), (1000, 3), (161, 160)])
def test_boxes_have_the_canvas_of_their_cached_image(size):
    """Whatever the rounding of sides."""
    boxes = tv_tensors.BoundingBoxes([[0.0, 0, *size]], format="XYXY", canvas_size=size[::-1])
    images = ImageSet(torch.arange(1), [Image.new("L", size)].__getitem__, further={"boxes": [boxes].__getitem__})
    sample = cached_with_boxes(images, 160).sample(0)
    width, height = sample["image"].size
    assert sample["boxes"].canvas_size == (height, width)
    assert max(width, height) == 160
    assert torch.allclose(sample["boxes"], torch.tensor([[0.0, 0, width, height]]), rtol=1e-6)
