"""The experts of a network on a set: pytest tests/explain/test_analysis.py"""

from collections import Counter

import pytest
import torch
from PIL import Image
from sklearn.metrics import mutual_info_score
from torchvision import tv_tensors

import vismoe
from vismoe.data import ImageSet, open_data
from vismoe.detection import make_detector
from vismoe.explain import analyse_set, mutual_information, route, without_each_expert
from vismoe.inference import Predictor, evaluate
from vismoe.tasks.detection import Detection

SMALL = "vmoe_pico_patch2_8_every2_e8"


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(vismoe.create_model(SMALL, num_classes=10, in_chans=1), batch_size=16)


def test_counts(predictor, digits):
    """Load, classes, positions and pairs of experts of consecutive layers, counted token by token from the tables of
    `route`; and the mutual information of scikit-learn."""
    images = digits.val.subset(range(40))
    analysis = analyse_set(predictor, images, digits.classes)
    tables = route(predictor, images)
    assert [layer.name for layer in analysis.layers] == ["blocks.1", "blocks.3"]
    for layer, table in zip(analysis.layers, tables.values(), strict=True):
        loads, classes, positions = Counter(), Counter(), Counter()
        for image, tokens in enumerate(table.expert.tolist()):
            for token, (expert,) in enumerate(tokens):
                loads[expert] += 1
                classes[expert, int(images.labels[image])] += 1
                if token:
                    positions[expert, (token - 1) // 4, (token - 1) % 4] += 1
        assert layer.load.tolist() == [loads[expert] for expert in range(8)]
        assert layer.by_class.tolist() == [[classes[expert, c] for c in range(10)] for expert in range(8)]
        assert {
            tuple(place): layer.by_position[tuple(place)].item() for place in layer.by_position.nonzero().tolist()
        } == (positions)
        experts = table.expert.flatten().tolist()
        expected = mutual_info_score(experts, images.labels.repeat_interleave(17).tolist()) / torch.tensor(2).log()
        assert layer.by_class_information.value == pytest.approx(expected.item())
        assert layer.dead == [expert for expert in range(8) if not loads[expert]]
    first, last = analysis.layers
    one, other = (table.expert[:, 1:, 0].flatten().tolist() for table in tables.values())
    pairs = Counter(zip(one, other, strict=True))
    assert first.together.tolist() == [[pairs[e, f] for f in range(8)] for e in range(8)]
    assert last.together is None


def test_information_against_shuffles():
    """Experts that follow the class share all its bits with it, far above the control; experts that follow something
    else do not; the control is reproducible."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(25)
    colours = torch.tensor([0, 80, 160, 240])
    sets = {
        "class": ImageSet(labels, lambda index: Image.new("L", (8, 8), int(colours[labels[index]]))),
        "other": ImageSet(labels[torch.randperm(100)], lambda index: Image.new("L", (8, 8), int(colours[index % 4]))),
    }
    model = vismoe.create_model(SMALL, num_classes=4, in_chans=1, moe={"router": "image", "balance": "none"})
    found = {}
    for name, images in sets.items():
        found[name] = analyse_set(Predictor(model), images, list("abcd")).layers[-1].by_class_information
        again = analyse_set(Predictor(model), images, list("abcd")).layers[-1].by_class_information
        assert again == found[name]
    assert found["class"].value > 0.5
    assert found["class"].value > 3 * found["class"].largest_shuffled
    assert found["other"].value < 2 * found["other"].largest_shuffled
    assert mutual_information(torch.eye(4)) == pytest.approx(2)
    assert mutual_information(torch.ones(4, 3)) == pytest.approx(0)


def test_gallery(predictor, digits):
    """For each expert the surest patches of different images, surest first, with the gates of the recording."""
    images = digits.val.subset(range(40))
    (layer, _) = analyse_set(predictor, images, digits.classes).layers
    batch = torch.stack([predictor.prepare(images.sample(index))["image"] for index in range(40)])
    with torch.no_grad(), vismoe.record(predictor.model) as routing:
        predictor.model.eval()(batch)
    gates = routing.layers["blocks.1.mlp"][0].gates.view(40, 17, 8)[:, 1:]
    chosen = route(predictor, images)["blocks.1.mlp"].expert[:, 1:, 0]
    for expert, patches in enumerate(layer.gallery):
        best = [
            max((g for g, e in zip(*pair, strict=True) if e == expert), default=-1.0)
            for pair in zip(gates[:, :, expert].tolist(), chosen.tolist(), strict=True)
        ]
        expected = sorted((gate for gate in best if gate >= 0), reverse=True)[:12]
        assert [gate for _, gate in patches] == pytest.approx(expected)
        assert all(image.size == (60, 60) for image, _ in patches)


def test_json_and_networks_without_classes_or_experts(predictor, digits):
    """What a service sends has plain values; images without classes have no table of classes; a dense network has no
    layers."""
    unlabelled = ImageSet(torch.zeros(5, 0, dtype=torch.bool), digits.val.image)
    shown = analyse_set(predictor, unlabelled).to_json()
    assert (shown["images"], shown["classes"], len(shown["layers"])) == (5, [], 2)
    assert shown["layers"][0]["by_class"] is shown["layers"][0]["mutual_information"]["class"] is None
    assert {uri[:22] for patches in shown["layers"][0]["gallery"] for uri in patches} == {"data:image/png;base64,"}
    dense = Predictor(vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=10, in_chans=1))
    assert analyse_set(dense, digits.val, digits.classes).layers == []
    with pytest.raises(ValueError, match="no images"):
        analyse_set(predictor, digits.val.subset([]))
    with pytest.raises(ValueError, match="labels from 0 to 9 for 3 classes"):
        analyse_set(predictor, digits.val, ["a", "b", "c"])


def test_classes_of_patches():
    """Of a detector, a patch counts for the class of the smallest labelled box that contains its centre, or for the
    background, counted patch by patch; padding does not count."""
    torch.manual_seed(0)
    detector = make_detector(vismoe.create_model("vmoe_pico_patch4_28_every2_e8", img_size=48), 2, (48, 48))
    predictor = Predictor(detector, task=Detection(["a", "b"]))
    boxes = [[0.0, 0.0, 60.0, 40.0], [10.0, 10.0, 30.0, 30.0]]  # the second lies in the first
    further = {
        "boxes": lambda index: tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=(64, 96)),
        "classes": lambda index: torch.tensor([0, 1]),
        "ignored": lambda index: torch.zeros(2, dtype=torch.bool),
    }
    pixels = torch.randint(0, 255, (3, 64, 96, 3), dtype=torch.uint8).numpy()
    images = ImageSet(torch.ones(3, 2, dtype=torch.bool), lambda index: Image.fromarray(pixels[index]), further=further)
    analysis = analyse_set(predictor, images, ["a", "b"])
    assert analysis.by_patch
    assert analysis.classes == ["a", "b", "background"]
    for layer, table in zip(analysis.layers, route(predictor, images).values(), strict=True):
        counts = Counter()
        for experts in table.expert.view(3, 12, 12, -1).tolist():
            for row, line in enumerate(experts):
                for column, (expert, *_) in enumerate(line):
                    x, y = 2 * (4 * column + 2), 2 * (4 * row + 2)  # 96 pixels become 48
                    inside = [left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes]
                    counts[expert, 1 if inside[1] else 0 if inside[0] else 2] += 1
        assert layer.by_class.tolist() == [[counts[expert, c] for c in range(3)] for expert in range(8)]


@pytest.mark.parametrize("router", ["top-k", "soft", "expert-choice"])
def test_without_each_expert(digits, router):
    """The score without an expert is that of a network whose expert has weights 0 in its last matrix."""
    torch.manual_seed(0)
    model = vismoe.create_model(SMALL, num_classes=10, in_chans=1, moe={"router": router})
    with torch.no_grad():
        model.head.weight.normal_()
    images = digits.val.subset(range(30))
    total, rows = without_each_expert(Predictor(model), digits.val.subset(range(30)))
    assert total == pytest.approx(evaluate(model, images).score)
    assert [(row.layer, row.expert) for row in rows] == [(f"blocks.{n}", e) for n in (1, 3) for e in range(8)]
    whole_loss = evaluate(model, images).metrics["loss"]
    down = model.blocks[1].mlp.experts.down
    for row in rows[:3]:
        own = [parameter.detach().clone() for parameter in (down.weight, down.bias)]
        with torch.no_grad():
            down.weight[row.expert], down.bias[row.expert] = 0, 0
        assert row.score == pytest.approx(evaluate(model, images).score)
        assert row.change == pytest.approx(row.score - total)
        assert whole_loss + row.loss_change == pytest.approx(evaluate(model, images).metrics["loss"], abs=1e-5)
        with torch.no_grad():
            down.weight.copy_(own[0])
            down.bias.copy_(own[1])
