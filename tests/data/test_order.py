"""pytest tests/data/test_order.py: the stream of training images is a function of (seed, epoch, index)."""

import itertools

import pytest
import torch

from vismoe.data import evaluation_batches, open_data, training_batches, training_transform
from vismoe.data.batches import Samples, ShuffledForever

CONFIG = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic", "crop_pct": 1.0}


@pytest.fixture(scope="module")
def images():
    return open_data("digits").train


def augment():
    return training_transform(CONFIG, degrees=10.0, translate=0.08, scale=0.1, shear=5.0)


def stream(images, seed=0, workers=0, batches=4):
    loader = training_batches(images, augment(), batch_size=8, seed=seed, workers=workers)
    return list(itertools.islice(loader, batches))


def test_any_number_of_workers_gives_the_same_stream(images):
    """Two worker processes and none give equal bits."""
    for alone, shared in zip(stream(images), stream(images, workers=2), strict=True):
        assert torch.equal(alone["image"], shared["image"])
        assert torch.equal(alone["label"], shared["label"])


def test_the_stream_follows_the_seed(images):
    """One seed, one stream, wherever the global generator stands; another seed, another."""
    first, *_ = stream(images)
    torch.manual_seed(12345)
    again, *_ = stream(images)
    other, *_ = stream(images, seed=1)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])


def test_every_epoch_shows_every_image_once_in_a_new_order():
    """An epoch is a permutation, and the next is another."""
    keys = list(itertools.islice(ShuffledForever(10, seed=0), 30))
    epochs = [[index for epoch, index in keys if epoch == number] for number in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("start", [0, 3, 9, 10, 27])
def test_start_skips_exactly_what_was_seen(start):
    """A resumed run's order continues where it stopped, within an epoch and across."""
    keys = list(itertools.islice(ShuffledForever(10, seed=5), 40))
    assert list(itertools.islice(ShuffledForever(10, seed=5, start=start), 40 - start)) == keys[start:]


def test_an_image_is_augmented_anew_each_epoch(images):
    """The same image in another epoch, or under another seed, is another sample; asked again, the same."""
    samples = Samples(images, augment(), seed=0)
    first = samples[0, 7]["image"]
    assert torch.equal(first, samples[0, 7]["image"])
    assert not torch.equal(first, samples[1, 7]["image"])
    assert not torch.equal(first, Samples(images, augment(), seed=1)[0, 7]["image"])


def test_fetching_leaves_the_global_generator_alone(images):
    """Dropout and router noise draw what they would draw without any data, even where a sample fails."""
    before = torch.get_rng_state()
    Samples(images, augment())[0, 0]
    with pytest.raises(IndexError):
        Samples(images, augment())[0, len(images)]
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_shows_everything_once_in_order(images):
    """Batches of an evaluation, laid side by side, are the set."""
    images = images.subset(range(34))
    batches = list(evaluation_batches(images, augment(), batch_size=13))
    assert [len(batch["image"]) for batch in batches] == [13, 13, 8]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(images.labels)
