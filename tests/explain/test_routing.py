"""Tables and images of what routers did."""

from itertools import combinations

import pytest
import torch
from PIL import Image

import vismoe
from vismoe.data import ImageSet, open_data
from vismoe.explain import LayerRouting, experts_of_tokens, route, routing_figure, routing_images
from vismoe.explain.routing_figure import _title_of
from vismoe.inference import Predictor


def test_experts_of_tokens_is_the_plan_read_row_by_row():
    """Each token's live rows name its experts; a dropped choice is -1."""
    torch.manual_seed(0)
    layer = vismoe.MoE(
        vismoe.TopKRouter(8, 4, k=2, capacity_factor=0.4, capacity_multiple_of=1), vismoe.MLPExperts(8, 8, 4)
    )
    with vismoe.record(layer) as routing:
        layer(torch.randn(2, 9, 8))
    plan = routing.layers[""][0].plan
    expected = [[] for _ in range(18)]
    row = 0
    for expert, count in enumerate(plan.count.tolist()):
        for _ in range(count):
            expected[plan.token[row]].append(expert)
            row += 1
    table = experts_of_tokens(plan)
    assert (table == -1).sum() == 36 - row > 0
    for token, experts in enumerate(expected):
        assert sorted(e for e in table[token].tolist() if e >= 0) == sorted(experts)


def test_by_class_counts_tokens():
    """Experts × classes, counted by hand; dropped tokens count nowhere; an image of both classes counts for both."""
    routing = LayerRouting(torch.tensor([[[0], [1], [-1]], [[1], [1], [0]]]), num_experts=3)
    assert routing.by_class(torch.tensor([1, 0]), num_classes=2).tolist() == [[1, 1], [2, 1], [0, 0]]
    both = torch.tensor([[False, True], [True, True]])
    assert routing.by_class(both, num_classes=2).tolist() == [[1, 2], [2, 3], [0, 0]]


def test_titles_have_room():
    """An image's classes are wrapped at commas into two lines; what does not fit is left out or cut; an image without
    a class says so; a dollar sign begins no formula."""
    classes = ["thing", "transparent", "wood", "a$", "electroencephalograph"]
    for shown, title in (
        ([0, 1], "thing,\ntransparent"),
        ([1, 0, 2], "thing,\ntransparent, …"),
        ([1, 4], "transparent, …"),
        ([], "nothing"),
        ([3], "a\\$"),
        ([4], "electroenceph…"),
    ):
        label = torch.zeros(len(classes), dtype=torch.bool)
        label[shown] = True
        assert _title_of(label, classes) == title
    assert _title_of(torch.tensor(2), classes) == "wood"


def test_images(tmp_path):
    """A sparse model leaves an image and a table for every layer; a dense one none."""
    digits = open_data("digits")
    sparse = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, in_chans=1)
    predictor = Predictor(sparse)
    assert routing_images(predictor, digits.val, digits.classes, tmp_path) == tmp_path / "routing.png"
    assert (tmp_path / "routing.png").read_bytes()[:4] == b"\x89PNG"
    layers = route(predictor, digits.val)
    assert list(layers) == ["blocks.1.mlp", "blocks.3.mlp"]
    assert layers["blocks.1.mlp"].expert.shape == (450, 17, 1)
    dense = vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=10, in_chans=1)
    assert routing_images(Predictor(dense), digits.val, digits.classes, tmp_path / "none") is None


@pytest.mark.parametrize(("pooling", "told"), [({}, True), ({"global_pool": "avg", "class_token": False}, False)])
def test_a_class_token_is_spoken_of_where_there_is_one(tmp_path, monkeypatch, pooling, told):
    """The title explains the frames; a network that takes the mean of its patches has none."""
    drawn = []
    monkeypatch.setattr(routing_figure, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    digits = open_data("digits")
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, in_chans=1, **pooling)
    routing_images(Predictor(model), digits.val.subset(range(12)), digits.classes, tmp_path, "of a test")
    title = drawn[0].subfigs[0]._suptitle.get_text()
    assert ("class token" in title) == told
    assert title.endswith("\nof a test")


@pytest.mark.parametrize("number", [2, 12])
def test_titles_do_not_overlap(tmp_path, monkeypatch, number):
    """Titles lie inside the figure and apart from each other: of few images and of many, with long names of classes
    and a long note."""
    drawn = []
    monkeypatch.setattr(routing_figure, "save_figure", lambda figure, path, dpi: drawn.append(figure))
    labels = torch.arange(5).repeat(number, 1) != torch.arange(number)[:, None] % 5
    images = ImageSet(labels, lambda index: Image.new("RGB", (8, 8)))
    classes = ["transparent", "RED BLOOD CELL", "wood", "electroencephalograph", "mammal"]
    predictor = Predictor(vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=5))
    routing_images(predictor, images, classes, tmp_path, "network before training, kept with its linear classifier")
    (figure,) = drawn
    figure.draw_without_rendering()
    titles = [axes.title for part in figure.subfigs for axes in part.axes] + [part._suptitle for part in figure.subfigs]
    boxes = {title: title.get_window_extent() for title in titles if title.get_text()}
    assert len(boxes) == min(number, 10) + 2 + 2
    for box in boxes.values():
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    for one, other in combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), f"{one.get_text()!r} and {other.get_text()!r}"
