"""One image through a network: pytest tests/explain/test_trace.py"""

import copy
import math
import threading

import pytest
import torch
from PIL import Image

import vismoe
from vismoe.detection import make_detector
from vismoe.explain import attention_rollout, has_capacity, has_rollout, trace_image, using_capacity
from vismoe.explain.trace import shown_image
from vismoe.inference import Predictor
from vismoe.tasks.detection import Detection

SMALL = "vmoe_pico_patch2_8_every2_e8"


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(vismoe.create_model(SMALL, num_classes=10, in_chans=1, moe={"experts_per_token": 2}))


@pytest.fixture
def image() -> Image.Image:
    torch.manual_seed(1)
    return Image.fromarray(torch.randint(0, 255, (8, 8), dtype=torch.uint8).numpy())


def claimed(gates: list[list[float]], chosen: list[list[int]], capacity: int, priority: bool) -> list[list[int]]:
    """Algorithms 1 and 2 of Riquelme et al. 2021, token by token: −1 where the expert is full."""
    order = sorted(range(len(gates)), key=lambda token: -max(gates[token])) if priority else range(len(gates))
    free = [capacity] * len(gates[0])
    kept = [[-1] * len(chosen[0]) for _ in gates]
    for place in range(len(chosen[0])):  # all first choices before any second choice
        for token in order:
            expert = chosen[token][place]
            if free[expert]:
                free[expert] -= 1
                kept[token][place] = expert
    return kept


@pytest.mark.parametrize("priority", [True, False])
@pytest.mark.parametrize("capacity", [0.25, 0.5, 1.0])
def test_capacity_drops_what_the_paper_drops(predictor, image, capacity, priority):
    """The kept choices of the first layer, by position and by batch priority, compared with the algorithms written
    out; weights are the gates; the shares are counted."""
    full = trace_image(predictor, image)
    with torch.no_grad(), vismoe.record(predictor.model) as routing:
        predictor.model.eval()(predictor.prepare({"image": image})["image"][None])
    (call,) = routing.layers["blocks.1.mlp"]
    gates = call.gates[0].tolist()
    chosen = full.layers[0].expert.tolist()
    biased = call.gates[0].log() + predictor.model.blocks[1].mlp.router.balance_bias
    assert biased.topk(2).indices.sort().values.tolist() == [sorted(experts) for experts in chosen]

    trace = trace_image(predictor, image, capacity, priority)
    layer = trace.layers[0]
    expected = claimed(gates, chosen, math.ceil(17 * 2 * capacity / 8), priority)
    assert layer.expert.tolist() == expected
    assert any(-1 in experts for experts in expected)
    for token, experts in enumerate(expected):
        weights = [gates[token][expert] if expert >= 0 else 0 for expert in experts]
        assert layer.weight[token].tolist() == pytest.approx(weights)
        assert layer.priority[token].item() == pytest.approx(max(gates[token]))
        assert layer.kept[token].item() == any(expert >= 0 for expert in experts)
    assert layer.kept_share == pytest.approx(sum(expert >= 0 for experts in expected for expert in experts) / 34)


def test_trace_is_what_the_network_does(predictor, image):
    """The prediction is the predictor's, each layer's table has the network's plan, and JSON leaves out the class
    token."""
    trace = trace_image(predictor, image, topk=3)
    (expected,) = predictor.predict(image, topk=3)
    assert trace.prediction.names == expected.names
    assert trace.prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert trace.seconds > 0
    assert trace.kept == 1
    assert [(layer.name, layer.grid, layer.prefix) for layer in trace.layers] == [
        ("blocks.1", (4, 4), 1),
        ("blocks.3", (4, 4), 1),
    ]
    shown = trace.to_json()
    assert (shown["width"], shown["height"], shown["rollout"]) == (8, 8, None)
    assert shown["layers"][0]["expert"][1][2] == trace.layers[0].expert[1 + 4 + 2].tolist()
    assert shown["layers"][0]["kept"] == [[True] * 4] * 4
    assert trace.image.convert("L").tobytes() == image.tobytes()  # 8 × 8 pixels need no scaling


def test_capacity_is_restored(predictor, image):
    """After the call, after the context, after an error inside, and while another thread predicts."""
    routers = [block.mlp.router for block in (predictor.model.blocks[1], predictor.model.blocks[3])]
    before = [dict(vars(router)) for router in routers]
    trace_image(predictor, image, 0.5)
    with using_capacity(predictor.model, 0.5):
        assert routers[0].eval_capacity_factor == 0.5
    with pytest.raises(ValueError, match="topk=0"), using_capacity(predictor.model, 0.5):
        predictor.predict(image, topk=0)
    for router, own in zip(routers, before, strict=True):
        assert {name: vars(router)[name] for name in own if not name.startswith("_")} == {
            name: value for name, value in own.items() if not name.startswith("_")
        }
    (expected,) = predictor.predict(image)
    differing = []

    def predict() -> None:
        for _ in range(10):
            (prediction,) = predictor.predict(image)
            differing.append(prediction.probabilities != expected.probabilities)

    thread = threading.Thread(target=predict)
    thread.start()
    traces = [trace_image(predictor, image, 0.125) for _ in range(10)]
    thread.join()
    assert not any(differing)
    assert all(trace.kept < 0.6 for trace in traces)


@pytest.mark.parametrize("capacity", [None, 0.5])
def test_the_optimized_form_is_traced_alike(predictor, image, capacity):
    """A service runs the form with packed weights: it has the same experts, rollout and answer."""
    packed = Predictor(copy.deepcopy(predictor.model), optimized=True)
    expected, trace = (trace_image(each, image, capacity, rollout=True) for each in (predictor, packed))
    for layer, other in zip(trace.layers, expected.layers, strict=True):
        assert torch.equal(layer.expert, other.expert)
        torch.testing.assert_close(layer.weight, other.weight)
    torch.testing.assert_close(trace.rollout, expected.rollout)
    assert trace.prediction.probabilities == pytest.approx(expected.prediction.probabilities, abs=1e-5)


@pytest.mark.parametrize("capacity", [0, -1.0, math.nan, math.inf])
def test_capacity_out_of_range(predictor, image, capacity):
    """A capacity is a positive number."""
    with pytest.raises(ValueError, match="accepted are positive numbers"):
        trace_image(predictor, image, capacity)


def test_networks_without_a_capacity(image):
    """Dense networks and soft routing have none, and say so; a dense network is traced without layers."""
    for options in ({"name": "vmoe_pico_patch2_8_dense"}, {"name": SMALL, "moe": {"router": "soft"}}):
        predictor = Predictor(vismoe.create_model(options.pop("name"), num_classes=10, in_chans=1, **options))
        assert not has_capacity(predictor.model)
        with pytest.raises(ValueError, match="leave the capacity out"):
            trace_image(predictor, image, 0.5)
        assert trace_image(predictor, image).kept == 1


@pytest.mark.parametrize(
    ("options", "k"),
    [
        ({"moe": {"router": "expert-choice"}}, 8),
        ({"moe": {"router": "soft"}}, 1),
        ({"moe": {"router": "image"}}, 1),
        ({"ensemble_size": 2}, 2),
    ],
    ids=["expert-choice", "soft", "image", "ensemble"],
)
def test_every_kind_of_routing(image, options, k):
    """Tables have one row per token, whoever chooses; a token is kept if its row names an expert."""
    predictor = Predictor(vismoe.create_model(SMALL, num_classes=10, in_chans=1, **options))
    for layer in trace_image(predictor, image).layers:
        assert layer.expert.shape == (17, k)
        assert layer.k == k
        assert torch.equal(layer.kept, (layer.expert >= 0).any(1))
        assert torch.equal(layer.weight > 0, layer.expert >= 0)
        assert 0 < layer.kept_share <= 1


def test_padding_and_windows_of_a_detector():
    """Patches of the margin are not routed and do not count; the patches of windows are put back in the order of the
    grid: blocks within windows route what single windows do."""
    torch.manual_seed(0)
    trunk = vismoe.create_model("vmoe_pico_patch4_28_every2_e8", img_size=48)
    detector = make_detector(trunk, 3, (48, 48), windowed_blocks=2, window=8).eval()
    predictor = Predictor(detector, task=Detection(["a", "b", "c"]))
    image = Image.fromarray(torch.randint(0, 255, (30, 48, 3), dtype=torch.uint8).numpy())
    trace = trace_image(predictor, image, rollout=True)
    first, last = trace.layers
    assert (first.grid, last.grid, trace.rollout) == ((12, 12), (12, 12), None)
    inside = torch.arange(12)[:, None].expand(12, 12) < 8  # 30 pixels are 7.5 patches
    for layer in (first, last):
        assert torch.equal(layer.mask.view(12, 12), inside)
        assert torch.equal(layer.kept.view(12, 12), inside)
        assert layer.to_json()["padding"] == (~inside).tolist()
    assert trace.kept == 1
    prepared = predictor.prepare({"image": image})
    with torch.no_grad(), vismoe.record(detector) as routing:
        detector(prepared["image"][None], prepared["mask"][None])
    (call,) = routing.layers["trunk.blocks.3.mlp"]
    gates = call.gates.flatten(0, 1).view(2, 2, 8, 8, 8)  # windows down, windows across, rows, columns, experts
    expected = [[gates[r // 8, c // 8, r % 8, c % 8].amax().item() for c in range(12)] for r in range(12)]
    torch.testing.assert_close(last.priority.view(12, 12), torch.tensor(expected))


@pytest.mark.parametrize("pooling", [{}, {"global_pool": "avg", "class_token": False}], ids=["token", "mean"])
def test_rollout_is_the_product_of_attention(predictor, image, pooling):
    """Each block's attention from its own queries and keys, multiplied as whole matrices in float64."""
    predictor = Predictor(vismoe.create_model(SMALL, num_classes=10, in_chans=1, **pooling))
    trace = trace_image(predictor, image, rollout=True)
    total, inputs = None, []
    model = predictor.model
    hooks = [block.attn.register_forward_pre_hook(lambda _, x: inputs.append(x[0])) for block in model.blocks]
    with torch.no_grad():
        model.eval()(trace.sample["image"][None])
        for block, x in zip(model.blocks, inputs, strict=True):
            queries, keys, _ = block.attn.qkv(x).double()[0].unflatten(1, (3, 4, 16)).permute(1, 2, 0, 3)
            mixed = ((queries @ keys.mT) / 4).softmax(-1).mean(0) / 2 + torch.eye(len(x[0])) / 2
            total = mixed if total is None else mixed @ total
    for hook in hooks:
        hook.remove()
    expected = (total.mean(0) if pooling else total[0, 1:]).view(4, 4)
    torch.testing.assert_close(trace.rollout.double(), expected / expected.sum(), rtol=0, atol=1e-5)
    assert all(block.attn.fused_attn for block in model.blocks)
    assert trace.to_json()["rollout"] == trace.rollout.tolist()


def test_rollout_needs_attention():
    """Another network is named, and is no error of a trace."""
    assert not has_rollout(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no attention rollout"):
        attention_rollout(torch.nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="expected one image"):
        attention_rollout(vismoe.create_model(SMALL), torch.zeros(2, 3, 8, 8))


def test_shown_image_is_the_prepared_one():
    """The normalisation is undone with the predictor's own mean and std."""
    predictor = Predictor(vismoe.create_model(SMALL), preprocessing={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    assert shown_image(predictor, predictor.prepare({"image": image})["image"]).getpixel((3, 3)) == (200, 100, 50)
