"""Targets, loss and decoding against slow versions of the same.

python -m pytest tests/detection/test_loss.py
"""

import math

import pytest
import torch
from torchvision.ops import box_iou

from vismoe.detection import Outputs, decode, detection_loss, targets
from vismoe.detection.loss import POSITIVE, SPREAD, pairwise_iou


def random_boxes(count, height, width, generator):
    corners = torch.rand(count, 4, generator=generator)
    x, y = corners[:, ::2].sort(1).values * width, corners[:, 1::2].sort(1).values * height
    return torch.stack([x[:, 0], y[:, 0], x[:, 1] + 1, y[:, 1] + 1], 1)


@pytest.mark.parametrize("seed", range(20))
def test_targets_equal_those_of_a_slow_oracle(seed):
    generator = torch.Generator().manual_seed(seed)
    stride, shape, classes = (7.0, 8.0), (6, 9), 3
    boxes = random_boxes(8, 42, 72, generator)
    kinds = torch.randint(classes, (8,), generator=generator)
    ignored = torch.rand(8, generator=generator) < 0.25
    made = targets(boxes, kinds, ignored, classes, shape, stride)
    centres, is_centre = torch.zeros(classes, *shape), torch.zeros(classes, *shape, dtype=torch.bool)
    counted, learned = torch.ones(shape, dtype=torch.bool), {}
    for row in range(shape[0]):
        for column in range(shape[1]):
            nearest = 0.0
            for box, kind, skip in zip(boxes.tolist(), kinds.tolist(), ignored.tolist(), strict=True):
                left, right = box[0] / stride[1], box[2] / stride[1]
                top, bottom = box[1] / stride[0], box[3] / stride[0]
                if skip:
                    counted[row, column] &= not (left <= column + 0.5 < right and top <= row + 0.5 < bottom)
                    continue
                middle = min(int((left + right) / 2), shape[1] - 1), min(int((top + bottom) / 2), shape[0] - 1)
                dx = (column - middle[0]) / (SPREAD * (right - left))
                dy = (row - middle[1]) / (SPREAD * (bottom - top))
                value = math.exp(-(dx * dx + dy * dy) / 2)
                centres[kind, row, column] = max(centres[kind, row, column], value)
                is_centre[kind, row, column] |= middle == (column, row)
                if value >= POSITIVE and value > nearest:
                    nearest, learned[row * shape[1] + column] = value, box
    torch.testing.assert_close(made.centres, centres)
    assert torch.equal(made.is_centre, is_centre)
    assert torch.equal(made.counted, counted)
    assert made.cells.tolist() == sorted(learned)
    torch.testing.assert_close(made.boxes, torch.tensor([learned[cell] for cell in sorted(learned)]).reshape(-1, 4))


def outputs_of(boxes, kinds, classes, shape, stride):
    """Outputs that say what the targets want."""
    wanted = targets(boxes, kinds, torch.zeros(len(boxes), dtype=torch.bool), classes, shape, stride)
    centres = torch.where(wanted.is_centre, 8.0, -8.0)
    found = torch.zeros(4, shape[0] * shape[1])
    found[2:] = 1
    found[:, wanted.cells] = wanted.boxes.T
    return Outputs(
        centres[None], torch.full((1, 1, *shape), 8.0), found.unflatten(1, shape)[None], None, stride
    ), wanted


def test_a_right_answer_has_nearly_no_loss_and_is_decoded():
    boxes = torch.tensor([[0.0, 0, 30, 30], [40, 8, 70, 60], [20, 30, 50, 62]])
    outputs, wanted = outputs_of(boxes, torch.tensor([0, 1, 1]), 2, (8, 10), (8.0, 8.0))
    assert detection_loss(outputs, [wanted]) < 0.01
    (found,) = decode(outputs)
    assert sorted(found.above(0.5).boxes.tolist()) == sorted(boxes.tolist())


def test_an_image_without_objects_has_a_finite_loss_and_gradient():
    centres = torch.zeros(1, 2, 4, 4, requires_grad=True)
    boxes = torch.zeros(1, 4, 4, 4, requires_grad=True)
    outputs = Outputs(centres, torch.zeros(1, 1, 4, 4), boxes, None, (8.0, 8.0))
    nothing = torch.zeros(0, dtype=torch.int64)
    wanted = targets(torch.zeros(0, 4), nothing, nothing.bool(), 2, (4, 4), (8.0, 8.0))
    loss = detection_loss(outputs, [wanted])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(centres.grad).all()


def test_an_object_inside_a_crowd_is_learnt():
    boxes = torch.tensor([[0.0, 0, 64, 64], [20, 20, 40, 40]])
    wanted = targets(boxes, torch.tensor([0, 1]), torch.tensor([True, False]), 2, (8, 8), (8.0, 8.0))
    centres = torch.full((1, 2, 8, 8), -4.0, requires_grad=True)
    found = torch.tensor([0.0, 0, 8, 8])[:, None, None].expand(4, 8, 8)[None]
    detection_loss(Outputs(centres, torch.zeros(1, 1, 8, 8), found, None, (8.0, 8.0)), [wanted]).backward()
    assert (centres.grad[0, 1] != 0).sum() == 1
    assert not centres.grad[0, 0].any()


def test_the_loss_of_a_batch_is_the_mean_of_its_images():
    """So gradient accumulation and several processes change nothing."""
    generator = torch.Generator().manual_seed(0)
    outputs, wanted = [], []
    for count in (0, 1, 7):
        boxes = random_boxes(count, 64, 80, generator)
        kinds = torch.randint(2, (count,), generator=generator)
        wanted.append(targets(boxes, kinds, torch.zeros(count, dtype=torch.bool), 2, (8, 10), (8.0, 8.0)))
        found = random_boxes(80, 64, 80, generator).T.unflatten(1, (8, 10))
        logits = torch.randn(3, 8, 10, generator=generator)
        outputs.append((logits[:2], logits[2:], found))
    whole = Outputs(*map(torch.stack, zip(*outputs, strict=True)), None, (8.0, 8.0))
    alone = [Outputs(*(value[None] for value in one), None, (8.0, 8.0)) for one in outputs]
    losses = [detection_loss(one, [target]) for one, target in zip(alone, wanted, strict=True)]
    torch.testing.assert_close(detection_loss(whole, wanted), torch.stack(losses).mean())


def test_pairwise_iou_is_the_diagonal_of_torchvision():
    generator = torch.Generator().manual_seed(0)
    one, other = random_boxes(50, 90, 120, generator), random_boxes(50, 90, 120, generator)
    torch.testing.assert_close(pairwise_iou(one, other), box_iou(one, other).diagonal())


@pytest.mark.parametrize("seed", range(5))
def test_decoding_equals_a_slow_oracle(seed):
    """Peaks by looking at all neighbours; then, by descending score, whatever overlaps no better box of its class."""
    generator = torch.Generator().manual_seed(seed)
    shape, classes = (7, 9), 3
    centres = 4 * torch.randn(1, classes, *shape, generator=generator)
    quality = torch.randn(1, 1, *shape, generator=generator)
    boxes = random_boxes(shape[0] * shape[1], 50, 70, generator).T.unflatten(1, shape)[None]
    inside = torch.ones(1, *shape, dtype=torch.bool)
    inside[:, 5:] = False
    (found,) = decode(Outputs(centres, quality, boxes, inside, (8.0, 8.0)))
    probability = torch.where(inside[:, None], centres.sigmoid(), 0)[0]
    listed = []
    for kind in range(classes):
        for row in range(shape[0]):
            for column in range(shape[1]):
                around = probability[kind, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                if probability[kind, row, column] == around.max():
                    score = (probability[kind, row, column] * quality[0, 0, row, column].sigmoid()).sqrt()
                    listed.append((float(score), kind, boxes[0, :, row, column]))
    kept = []
    for score, kind, box in sorted(listed, key=lambda entry: -entry[0]):
        if score >= 0.01 and all(k != kind or box_iou(box[None], b[None]) <= 0.6 for _, k, b in kept):
            kept.append((score, kind, box))
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in kept]))
    assert found.labels.tolist() == [kind for _, kind, _ in kept]
    torch.testing.assert_close(found.boxes, torch.stack([box for *_, box in kept]))
