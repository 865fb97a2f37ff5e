"""pytest tests/data/test_digits.py: the named set, and what is held out of it."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vismoe.data import ImageSet, open_data


def bytes_of(images: ImageSet) -> list[bytes]:
    return [images.image(number).tobytes() for number in range(len(images))]


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def test_a_quarter_is_held_out_and_nothing_is_lost(digits):
    """All 1,797 digits are in exactly one of the parts, so that no test image was trained on."""
    assert (len(digits.train), len(digits.val)) == (1347, 450)
    source = [(255 - image * 255 / 16).round().astype(np.uint8).tobytes() for image in load_digits().images]
    assert Counter(bytes_of(digits.train) + bytes_of(digits.val)) == Counter(source)


def test_labels_stay_with_their_bytes_of(digits):
    """The i-th label is that of the i-th picture, as scikit-learn gives them."""
    source = load_digits()
    label = {
        (255 - image * 255 / 16).round().astype(np.uint8).tobytes(): target
        for image, target in zip(source.images, source.target, strict=True)
    }
    assert digits.classes == [str(number) for number in range(10)]
    for part in (digits.train, digits.val):
        assert list(part.labels) == [label[image] for image in bytes_of(part)]


def test_the_split_is_stratified(digits):
    """Each class gives a quarter of its own images, to within one image."""
    held_out, every = Counter(digits.val.labels.tolist()), Counter(load_digits().target.tolist())
    for number, count in every.items():
        assert abs(held_out[number] - count / 4) <= 1


def test_the_split_follows_its_seed_alone(digits):
    """One split seed, one split, whatever else was drawn; another seed, another split."""
    np.random.seed(3)
    assert bytes_of(open_data("digits", split_seed=0).val) == bytes_of(digits.val)
    assert bytes_of(open_data("digits", split_seed=1).val) != bytes_of(digits.val)


def test_ink_is_dark_on_white(digits):
    """Grey 8 × 8 pictures over the whole range 0…255, mostly white paper."""
    pixels = np.stack([np.asarray(digits.val.image(number)) for number in range(len(digits.val))])
    assert pixels.shape == (450, 8, 8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.median(pixels[:, :, 0]) == 255
