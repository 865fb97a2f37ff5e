"""pytest tests/data/test_box_transforms.py: boxes stay on their objects, against painted rectangles and torchvision."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vismoe.data import ImageSet, box_evaluation_transform, box_training_transform, collate_boxes, training_batches
from vismoe.training.step import _micro_batches

ALL = {"flip": 0.5, "vertical_flip": 0.5, "quarter_turn": 0.5, "translate": 0.3, "aspect": 0.3}
NONE = {"flip": 0.0, "scale": 0.0, "crop": 1.0, "aspect": 0.0}


def config(size=(3, 48, 64), interpolation="bicubic", **further):
    middle = (0.5,) * size[0]
    return {"input_size": size, "mean": middle, "std": middle, "interpolation": interpolation, **further}


def photograph(width, height):
    """A smooth image: resampling it in another order changes its levels by one at most."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    levels = np.stack([x, y, (np.sin(5 * x + 3 * y) + 1) / 2], -1)
    return Image.fromarray((levels * 255).astype(np.uint8))


def sample(image, boxes=((10, 20, 50, 60),)):
    """A sample whose i-th box has class i."""
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    on_image = tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=(image.height, image.width))
    ignored = torch.zeros(len(rows), dtype=torch.bool)
    return {"image": image, "boxes": on_image, "classes": torch.arange(len(rows)), "ignored": ignored}


def levels(transformed):
    """The 8-bit levels (H, W, C) of a normalised image."""
    return ((transformed["image"] * 0.5 + 0.5) * 255).round().permute(1, 2, 0).int().numpy()


def random_boxes(generator, count, width, height):
    sides = generator.integers(16, 60, (count, 2))
    corners = generator.integers(0, [width, height] - sides)
    return np.concatenate([corners, corners + sides], 1).tolist()


@pytest.mark.parametrize("seed", range(150))
def test_boxes_stay_on_painted_rectangles(seed):
    """Each box is painted as a white rectangle, and the image transformed with the same random numbers: the bounds of
    the white pixels are the box, within a pixel, and their number says whether the box is kept and ignored."""
    generator = np.random.default_rng(seed)
    width, height = generator.integers(80, 200, 2).tolist()
    boxes = random_boxes(generator, 3, width, height)
    transform = box_training_transform(config(interpolation="nearest"), scale=0.5, crop=0.4, **ALL)
    for number, (left, top, right, bottom) in enumerate(boxes):
        painted = np.zeros((height, width), np.uint8)
        painted[top:bottom, left:right] = 255
        torch.manual_seed(seed)
        seen = transform(sample(Image.fromarray(painted), boxes))
        rows, columns = np.nonzero(seen["image"][0].numpy() > 0.5)
        (place,) = places if len(places := (seen["classes"] == number).nonzero()[:, 0]) else (None,)
        full = (right - left) * (bottom - top) * seen["scale"].prod().item()
        share, rounding = len(rows) / full, 2 / min(right - left, bottom - top) / seen["scale"].min().item()
        if place is None:
            assert share <= rounding
            continue
        if len(rows):
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(seen["boxes"][place].numpy(), bounds, atol=1.0)
        if abs(share - 0.3) > rounding:
            assert seen["ignored"][place].item() == (share < 0.3)


def test_boxes_of_all_kinds_are_drawn():
    """The random placements above contain boxes that are whole, cut, ignored and dropped; no box leaves the image."""
    transform = box_training_transform(config(), scale=0.5, crop=0.4, **ALL)
    boxes = [(0, 0, 20, 20), (40, 30, 80, 70), (90, 60, 120, 90)]
    given = sample(photograph(120, 90), boxes)
    torch.manual_seed(0)
    seen = [transform(given) for _ in range(100)]
    assert {len(one["boxes"]) for one in seen} >= {1, 2, 3}
    assert any(one["ignored"].any() for one in seen)
    for one in seen:
        assert len(one["boxes"]) == len(one["classes"]) == len(one["ignored"])
        rows, columns = one["mask"].nonzero(as_tuple=True)
        low, high = torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()]) + 1
        assert (one["boxes"].reshape(-1, 2, 2) >= low).all()
        assert (one["boxes"].reshape(-1, 2, 2) <= high).all()


@pytest.mark.parametrize("transform", [box_evaluation_transform, box_training_transform])
def test_the_mask_is_where_the_image_is(transform):
    """For a white image, the white pixels are those of the mask, and every other pixel is exactly 0, with noise too."""
    options = {"noise": 0.001, "scale": 0.5, **ALL} if transform is box_training_transform else {}
    change = transform(config(), **options)
    torch.manual_seed(0)
    for _ in range(50):
        seen = change(sample(Image.new("RGB", (90, 70), "white")))
        assert seen["mask"].any()
        assert (seen["image"][:, ~seen["mask"]] == 0).all()
        assert (seen["image"][:, seen["mask"]] > 0.9).all()


@pytest.mark.parametrize(
    ("width", "height", "scaled"), [(640, 480, (48, 64)), (333, 500, (48, 32)), (30, 20, (43, 64)), (2000, 3, (1, 64))]
)
def test_evaluation_letterboxes(width, height, scaled):
    """The image at the top left is torchvision's resized one, bit for bit, and boxes / scale are the given boxes."""
    image = photograph(width, height)
    box = (width * 0.1, height * 0.3, width * 0.7, height)
    seen = box_evaluation_transform(config())(sample(image, [box]))
    expected = functional.resize(image, list(scaled), InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(levels(seen)[: scaled[0], : scaled[1]], np.asarray(expected))
    assert seen["mask"].sum() == scaled[0] * scaled[1]
    assert seen["mask"][: scaled[0], : scaled[1]].all()
    assert seen["size"].tolist() == [height, width]
    assert seen["scale"].dtype == torch.float32
    np.testing.assert_allclose(seen["scale"], [scaled[0] / height, scaled[1] / width], rtol=1e-7)
    np.testing.assert_allclose(seen["boxes"] / seen["scale"][[1, 0, 1, 0]], [box], rtol=0, atol=1e-3)
    resized = functional.resize(sample(image, [box])["boxes"], list(scaled))
    torch.testing.assert_close(seen["boxes"].as_subclass(torch.Tensor), resized.as_subclass(torch.Tensor))
    assert seen["boxes"].canvas_size == (48, 64)


def test_evaluation_without_boxes():
    """A user's image needs no boxes, and gets none; the other values are those of an image with boxes."""
    image = photograph(90, 70)
    seen = box_evaluation_transform(config())({"image": image, "title": "mine"})
    assert seen.keys() == {"image", "title", "mask", "size", "scale"}
    assert seen["title"] == "mine"
    expected = box_evaluation_transform(config())(sample(image))
    assert all(torch.equal(seen[name], expected[name]) for name in ("image", "mask", "size", "scale"))


@pytest.mark.parametrize("transform", [box_evaluation_transform(config()), box_training_transform(config(), **NONE)])
def test_an_image_of_the_right_size_is_only_normalised(transform):
    """No pixel is resampled where nothing has to be: bit for bit torchvision's normalisation. Boxes are unchanged."""
    given = sample(photograph(64, 48), [(10, 20, 50, 40)])
    seen = transform(given)
    pixels = functional.to_dtype(functional.pil_to_tensor(given["image"]), torch.float32, scale=True)
    assert torch.equal(seen["image"], functional.normalize(pixels, [0.5] * 3, [0.5] * 3))
    assert torch.equal(seen["boxes"].as_subclass(torch.Tensor), given["boxes"].as_subclass(torch.Tensor))
    assert seen["mask"].all()


@pytest.mark.parametrize(("width", "height"), [(128, 96), (90, 70), (50, 100)])
def test_training_without_augmentation_is_evaluation(width, height):
    """With every range 0 and no flips, all values are those of evaluation."""
    given = sample(photograph(width, height), [(10, 20, 40, 60), (0, 0, width, height)])
    seen, expected = box_training_transform(config(), **NONE)(given), box_evaluation_transform(config())(given)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(seen[name].as_subclass(torch.Tensor), value.as_subclass(torch.Tensor)), name


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("flip", functional.horizontal_flip),
        ("vertical_flip", functional.vertical_flip),
        ("quarter_turn", lambda value: functional.rotate(value, 90, expand=True)),
    ],
)
def test_flips_and_rotation_are_torchvisions(name, operation):
    """As torchvision's operation on the image and its boxes, before evaluation's letterbox."""
    given = sample(photograph(120, 90), [(10, 20, 50, 60), (70, 0, 120, 33)])
    seen = box_training_transform(config(), **NONE | {name: 1.0})(given)
    changed = {"image": operation(given["image"]), "boxes": operation(given["boxes"])}
    expected = box_evaluation_transform(config())(given | changed)
    assert torch.equal(seen["mask"], expected["mask"])
    assert np.abs(levels(seen) - levels(expected)).max() <= 1
    torch.testing.assert_close(
        seen["boxes"].as_subclass(torch.Tensor), expected["boxes"].as_subclass(torch.Tensor), rtol=0, atol=1e-4
    )


def test_a_cropped_image_is_scaled_with_antialiasing():
    """A fine chequerboard, which nearest neighbour would show as black and white, is grey at a quarter of its size."""
    board = Image.fromarray((np.indices((192, 256)).sum(0) % 2 * 255).astype(np.uint8))
    torch.manual_seed(0)
    transform = box_training_transform(config((1, 48, 64)), **NONE | {"scale": 0.2, "crop": 0.5})
    for _ in range(20):
        seen = transform(sample(board))
        assert seen["image"].abs().max() < 0.1


def test_sizes_stay_within_their_ranges():
    """Scales are between 1 − scale and 1 / √crop of the fit, aspect ratios within their factor, and both are used."""
    transform = box_training_transform(config(), scale=0.4, crop=0.75, aspect=0.2)
    given = sample(photograph(160, 120))
    torch.manual_seed(0)
    scales = torch.stack([transform(given)["scale"] for _ in range(300)])
    factor, aspect = scales.prod(1).sqrt() * 2.5, scales[:, 1] / scales[:, 0]
    assert 0.59 < factor.min() < 0.62
    assert 1.13 < factor.max() < 0.75**-0.5 + 0.01
    assert 1 / 1.2 - 0.03 < aspect.min() < 0.87
    assert 1.15 < aspect.max() < 1.2 + 0.03


def test_small_images_lie_anywhere():
    """A scaled-down image is whole, and its corner takes many places; a shift moves up to half of it out."""
    given = sample(photograph(128, 96))
    torch.manual_seed(0)
    transform = box_training_transform(config(), **NONE | {"scale": 0.5})
    masks = torch.stack([transform(given)["mask"] for _ in range(100)])
    assert masks.sum((1, 2)).min() >= 24 * 32
    assert masks[:, 0, 0].any()
    assert masks[:, -1, -1].any()
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in masks}) > 50
    shifted = box_training_transform(config(), **NONE | {"translate": 0.9})
    columns = torch.stack([shifted(given)["mask"].any(0).sum() for _ in range(100)])
    assert columns.min() == 32
    assert columns.max() > 55


def test_equal_seeds_give_equal_samples():
    """Random numbers are only PyTorch's, also after the transform was sent to another process."""
    options = {"color_jitter": 0.3, "noise": 0.1, "erase": 0.5, **ALL}
    transform = box_training_transform(config(), **options)
    given = sample(photograph(120, 90))
    results = []
    for change in (transform, pickle.loads(pickle.dumps(transform))):
        np.random.seed(len(results))
        torch.manual_seed(7)
        results.append([change(given) for _ in range(5)])
    for first, second in zip(*results, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(results[0][0]["image"], results[0][1]["image"])
    assert torch.equal(given["boxes"].as_subclass(torch.Tensor), torch.tensor([[10.0, 20, 50, 60]]))


def test_hidden_objects_are_ignored():
    """Random erasing makes a box ignored if less than min_visible of its pixels is left; crowds stay ignored."""
    boxes = [(0, 0, 20, 20), (20, 10, 64, 48), (30, 0, 50, 16), (2, 30, 14, 48)]
    given = sample(Image.new("RGB", (64, 48), "white"), boxes)
    given["ignored"][3] = True
    transform = box_training_transform(config(), **NONE | {"erase": 1.0, "min_visible": 0.6})
    torch.manual_seed(0)
    hidden = []
    for _ in range(100):
        seen = transform(given)
        shown = (seen["image"][0] == 1).float()
        left = torch.stack([shown[top:bottom, left:right].mean() for left, top, right, bottom in boxes])
        expected = (left < 0.6) | given["ignored"]
        certain = (left - 0.6).abs() > 1e-5
        assert torch.equal(seen["ignored"][certain], expected[certain])
        assert len(seen["boxes"]) == 4
        hidden.append(seen["ignored"])
    assert 0 < torch.stack(hidden)[:, :3].float().mean() < 0.5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P", "1"])
def test_images_of_all_modes(mode, channels):
    """Every mode becomes the network's channels; transparent pixels are white, and level 1000 of 4000 is a quarter."""
    if mode == "I;16":
        image, expected = Image.fromarray(np.full((48, 64), 1000, np.uint16)), 64
    elif mode == "RGBA":
        image, expected = Image.new("RGBA", (64, 48), (0, 0, 0, 0)), 255
    else:
        image = Image.new("RGB", (64, 48), "white" if mode == "1" else (80, 80, 80))
        image = image.quantize() if mode == "P" else image.convert(mode)
        expected = 255 if mode == "1" else 80
    given = config((channels, 48, 64), max_level=4000)
    for transform in (box_evaluation_transform(given), box_training_transform(given, **NONE)):
        seen = transform(sample(image))
        assert seen["image"].shape == (channels, 48, 64)
        assert (np.abs(levels(seen) - expected) <= 3).all()
    jittered = levels(box_training_transform(given, color_jitter=0.5, **NONE)(sample(image)))
    assert jittered.shape == (48, 64, channels)
    assert np.ptp(jittered) <= 3  # one level of grey, by half brighter or darker
    assert expected / 2 - 3 <= jittered.mean() <= expected * 1.5 + 3


def test_colours_move():
    """color_jitter changes the brightness of the image and leaves the padding 0."""
    transform = box_training_transform(config(), **NONE | {"color_jitter": 0.4})
    torch.manual_seed(0)
    seen = [transform(sample(Image.new("RGB", (64, 96), (100, 100, 100)))) for _ in range(50)]
    means = torch.stack([one["image"][:, one["mask"]].mean() for one in seen]) / 2 + 0.5
    assert means.min() < 80 / 255
    assert means.max() > 120 / 255
    assert all((one["image"][:, ~one["mask"]] == 0).all() for one in seen)


def test_images_without_boxes_are_trained_on():
    """An image without objects is augmented as one with objects, and has empty boxes of the same type."""
    transform, image = box_training_transform(config()), photograph(90, 70)
    torch.manual_seed(0)
    seen = transform(sample(image, []))
    torch.manual_seed(0)
    expected = transform(sample(image))
    assert all(torch.equal(seen[name], expected[name]) for name in ("image", "mask", "size", "scale"))
    assert seen["boxes"].shape == (0, 4)
    assert seen["boxes"].canvas_size == expected["boxes"].canvas_size
    assert isinstance(seen["boxes"], tv_tensors.BoundingBoxes)
    assert seen["classes"].shape == seen["ignored"].shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"degrees": 5.0}, "degrees=5: .* set degrees to 0"),
        ({"shear": 5.0}, "shear=5: .* set shear to 0"),
        ({"scale": 1.0}, "scale=1: accepted is .* below 1"),
        ({"crop": 0.0}, "crop=0: accepted is .* above 0"),
        ({"translate": -0.1}, "translate=-0.1"),
        ({"aspect": -0.1}, "aspect=-0.1"),
        ({"flip": 1.5}, "flip=1.5"),
        ({"min_visible": 2.0}, "min_visible=2"),
        ({"noise": float("nan")}, "noise=nan"),
    ],
)
def test_augmentation_is_checked(change, message):
    """A wrong value is an error when the transform is made, with the value and what is accepted."""
    with pytest.raises(ValueError, match=message):
        box_training_transform(config(), **change)


def test_wrong_samples_and_networks():
    """Errors name what was given: boxes of another size or format, tensors, other channels, unknown interpolation."""
    transform, given = box_evaluation_transform(config()), sample(photograph(90, 70))
    turned = tv_tensors.BoundingBoxes([[1.0, 2, 3, 4]], format="XYXY", canvas_size=(90, 70))
    with pytest.raises(ValueError, match="belong to 90 × 70 pixels, but the image has 70 × 90"):
        transform(given | {"boxes": turned})
    sides = tv_tensors.BoundingBoxes([[1.0, 2, 3, 4]], format="XYWH", canvas_size=(70, 90))
    with pytest.raises(ValueError, match="the boxes are XYWH"):
        transform(given | {"boxes": sides})
    with pytest.raises(ValueError, match="the boxes are Tensor"):
        transform(given | {"boxes": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="the image is a Tensor"):
        transform(given | {"image": torch.zeros(3, 70, 90)})
    with pytest.raises(ValueError, match='needs "boxes"'):
        box_training_transform(config())({"image": given["image"]})
    with pytest.raises(ValueError, match="5 channels"):
        box_evaluation_transform(config((5, 48, 64)))
    with pytest.raises(ValueError, match="'cubic' is unknown; accepted are nearest"):
        box_evaluation_transform(config(interpolation="cubic"))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 5, 7, 8])
def test_batches_are_divided_with_their_boxes(size, count):
    """Batches of images with 0, 1, … boxes, and their micro-batches: each image keeps its own boxes."""
    transform = box_evaluation_transform(config())
    samples = [transform(sample(Image.new("L", (64, 48), 10 * i), [(0, 0, i + 1, 9)] * i)) for i in range(size)]
    batch = collate_boxes(samples)
    assert batch["image"].shape == (size, 3, 48, 64)
    assert batch["mask"].shape == (size, 48, 64)
    assert batch["size"].shape == batch["scale"].shape == (size, 2)
    parts = [part for part, _, _ in _micro_batches(batch, count)]
    numbers = []
    for part in parts:
        lengths = {name: len(value) for name, value in part.items()}
        assert len(set(lengths.values())) == 1, lengths
        for image, boxes, classes in zip(part["image"], part["boxes"], part["classes"], strict=True):
            number = round((image[0, 0, 0].item() * 0.5 + 0.5) * 25.5)
            assert len(boxes) == len(classes) == number
            assert (boxes[:, 2] == number + 1).all()
            numbers.append(number)
    assert numbers == list(range(size))


def test_a_loader_of_boxes():
    """The samples of a set with boxes in batches: with the same seed the same ones, by other processes too."""
    boxes = [sample(photograph(90, 70), [(0, 0, 9 + i, 20)] * i) for i in range(5)]
    further = {name: Values(boxes, name) for name in ("boxes", "classes", "ignored")}
    images = ImageSet(torch.ones(5, 2, dtype=torch.bool), Values(boxes, "image"), further=further)
    loaded = []
    for workers in (0, 1):
        batches = training_batches(
            images, box_training_transform(config()), 3, seed=1, workers=workers, collate=collate_boxes
        )
        stream = iter(batches)
        loaded.append([next(stream) for _ in range(3)])
    for first, second in zip(*loaded, strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["label"], torch.ones(3, 2, dtype=torch.bool))
        assert all(torch.equal(a, b) for a, b in zip(first["boxes"], second["boxes"], strict=True))
        assert all(isinstance(one, tv_tensors.BoundingBoxes) for one in second["boxes"])


def test_batches_need_few_open_files():
    """The tensors of a list share one storage: data workers send each storage as an open file, often at most 1024.
    Changing one does not change its neighbours."""
    samples = [box_evaluation_transform(config())(sample(photograph(64, 48), [(1, 2, 3, 4)] * i)) for i in range(4)]
    batch = collate_boxes(samples)
    for name in ("boxes", "classes", "ignored"):
        assert len({value.untyped_storage().data_ptr() for value in batch[name] if len(value)}) == 1
    batch["boxes"][1] += 1
    assert torch.equal(batch["boxes"][2].as_subclass(torch.Tensor), samples[2]["boxes"].as_subclass(torch.Tensor))


class Values:
    """A value of each sample by index; it can be pickled."""

    def __init__(self, samples, name):
        self.samples, self.name = samples, name

    def __call__(self, index):
        return self.samples[index][self.name]
