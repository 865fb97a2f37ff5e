"""An exported detector finds what its network finds, and is not written where it does not.

pytest tests/deploy/test_onnx_detection.py
"""

import json

import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image, ImageDraw

import vismoe
from vismoe.cli import main
from vismoe.deploy import box_agreement, export_onnx, onnx_export
from vismoe.deploy.agreement import choice_gap
from vismoe.deploy.box_agreement import CENTRE, ORDER, OVERLAPPING, RANK, SCORE, compare_boxes, first_close_call
from vismoe.deploy.product import masked_export_product
from vismoe.detection import Outputs, decode, decode_padded, make_detector
from vismoe.moe import MoE, loop
from vismoe.weights.exported.onnx_model import OnnxModel

from .test_docs_lines import lines

SIZE = (48, 80)
NAMES = ["red", "green", "blue"]


def detector(name="vmoe_pico_patch4_28_every2_e8", std=0.2, options=None, **trunk):
    """A small detector whose boxes and scores differ from cell to cell."""
    torch.manual_seed(0)
    made = make_detector(timm.create_model(name, num_classes=0, **trunk), 3, SIZE, width=32, **(options or {}))
    with torch.no_grad():
        for layer in (made.head.centre, made.head.box):
            layer.weight.normal_(std=std)
    return made.eval()


def sparse():
    """One sparse block after a convolutional stem."""
    moe = {"moe_layers": [0], "num_experts": 3}
    return detector(depth=1, moe=moe, pos_embed="sincos2d", options={"head_depth": 1})


def letterboxed(batch, seed=0):
    """Images with padding below, on the right, and without."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, *SIZE, dtype=torch.bool)
    for number in range(batch):
        height, width = ((30, 80), (48, 51), SIZE)[number % 3]
        mask[number, :height, :width] = True
    return torch.randn(batch, 3, *SIZE, generator=generator) * mask[:, None], mask


def feed(session, pixels, mask):
    return [torch.from_numpy(value) for value in session.run(None, {"pixels": pixels.numpy(), "mask": mask.numpy()})]


def same_objects(found, expected):
    """Slowly, by looking for each object's partner; returns the number of objects."""
    boxes, scores, labels = found
    for image, objects in enumerate(expected):
        count = len(objects)
        assert labels[image].tolist()[count:] == [-1] * (100 - count)
        assert not boxes[image, count:].any()
        assert not scores[image, count:].any()
        free = set(range(count))
        for box, score, label in zip(objects.boxes, objects.scores, objects.labels, strict=True):
            (partner,) = [
                row
                for row in free
                if labels[image, row] == label
                and (boxes[image, row] - box).abs().max() <= 1e-3
                and (scores[image, row] - score).abs() <= 1e-4
            ]
            free.remove(partner)
        assert not free
    return sum(map(len, expected))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "model"
    return vismoe.save(sparse(), path, NAMES, {"mean": [0.4] * 3, "std": [0.3] * 3}, "object-detection")


@pytest.fixture(scope="module")
def exported(folder):
    """The file that the command writes; most tests share it, because an export takes seconds."""
    file = folder.parent / "detector.onnx"
    assert main(["export", str(folder), str(file), "--dynamic-batch"]) == 0
    return file


def test_finds_what_the_network_finds(folder, exported):
    """At batches that it was not exported with, with and without padding; NaN in the padding changes nothing."""
    network, session = vismoe.load(folder), onnxruntime.InferenceSession(exported)
    for batch in (1, 2, 7):
        pixels, mask = letterboxed(batch, batch)
        with torch.no_grad():
            expected = decode(network(pixels, mask))
        assert same_objects(feed(session, pixels, mask), expected) > 20 * batch
        spoiled = torch.where(mask[:, None], pixels, torch.nan)
        for one, other in zip(feed(session, spoiled, mask), feed(session, pixels, mask), strict=True):
            assert torch.equal(one, other)
    pixels = letterboxed(3)[0]
    with torch.no_grad():
        assert same_objects(OnnxModel(exported)(pixels), decode(network(pixels))) > 60


def test_is_plain(exported):
    """Standard operators only, among them the removal of overlapping boxes; names, types and shapes as documented."""
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("NonMaxSuppression") == 1
    assert [len(node.output) for node in model.graph.node if node.op_type == "Split" and len(node.output) > 3] == [4]
    session = onnxruntime.InferenceSession(exported)
    described = [(value.name, value.type, value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("pixels", "tensor(float)", [3, *SIZE]),
        ("mask", "tensor(bool)", [*SIZE]),
        ("boxes", "tensor(float)", [100, 4]),
        ("scores", "tensor(float)", [100]),
        ("labels", "tensor(int64)", [100]),
    ]
    said = json.loads(session.get_modelmeta().custom_metadata_map["vismoe"])
    assert (said["label_names"], said["problem_type"], said["format"]) == (NAMES, "object-detection", 1)
    assert (said["preprocessing"]["mean"], said["preprocessing"]["input_size"]) == ([0.4] * 3, [3, *SIZE])


@pytest.fixture(scope="module")
def images(folder, tmp_path_factory):
    """Images with coloured rectangles, none of the shape of the input. Half of what the network finds is true, so that
    its figures are neither 0 nor 1."""
    place = tmp_path_factory.mktemp("rectangles")
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        size = (90 + 20 * number, 70)
        image = Image.effect_noise(size, 40).convert("RGB")
        for colour in NAMES:
            left, top = (torch.rand(2, generator=generator) * 50).tolist()
            ImageDraw.Draw(image).rectangle((left, top, left + 25, top + 15), colour)
        image.save(place / f"{number}.png")
    lines = []
    for prediction in vismoe.Predictor(folder).predict(place):
        true = prediction.boxes[:12:2]
        corners = [each.box for each in true]
        objects = {
            "bbox": [[left, top, right - left, bottom - top] for left, top, right, bottom in corners],
            "category": [each.name for each in true],
        }
        lines.append(json.dumps({"file_name": prediction.image.rpartition("/")[2], "objects": objects}))
    (place / "metadata.jsonl").write_text("\n".join(lines))
    return place


def test_commands(folder, exported, images, tmp_path, capsys):
    """`eval` and `predict` say of the file what they say of the model."""
    metrics = []
    for model in (folder, exported):
        assert main(["eval", str(model), "--data", str(images), "--json"]) == 0
        metrics.append(json.loads(capsys.readouterr().out))
    assert 0.1 < metrics[0]["map"] < 0.9
    for name in ("map", "map50", "mar100", "images"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-6), name
    predictions = []
    for model in (folder, exported):
        files = [str(path) for path in images.glob("*.png")]
        assert main(["predict", str(model), *files, "--format", "json", "--min-score", "0"]) == 0
        predictions.append(json.loads(capsys.readouterr().out))
    for ours, theirs in zip(*predictions, strict=True):
        assert len(ours["boxes"]) == len(theirs["boxes"]) > 10
        free = theirs["boxes"]
        for one in ours["boxes"]:  # one to one: objects with close scores may be in another order
            score, box = pytest.approx(one["score"], abs=1e-5), pytest.approx(one["box"], abs=1e-2)
            partners = [
                number
                for number, other in enumerate(free)
                if other["name"] == one["name"] and other["score"] == score and other["box"] == box
            ]
            assert partners, one
            free.pop(partners[0])
    assert main(["predict", str(exported), str(images / "0.png"), "--draw", str(tmp_path / "found")]) == 0
    assert len(list((tmp_path / "found").iterdir())) == 1


def test_the_lines_of_the_page_find_what_predict_finds(exported, images, capsys):
    """The lines of docs/export.md that need no vismoe, for images of other shapes than the input."""
    for image in images.glob("*.png"):
        found: dict = {}
        exec(lines("cells.onnx").replace("cells.onnx", str(exported)).replace("photo.jpg", str(image)), found)
        (expected,) = vismoe.Predictor(exported).predict(image)
        ours = [
            (found["about"]["label_names"][label], score)
            for label, score in zip(found["labels"], found["scores"], strict=True)
        ]
        assert ours[:10] == [(each.name, pytest.approx(each.score, abs=1e-5)) for each in expected.boxes[:10]]
        for box, each in zip(found["boxes"], expected.boxes[:10], strict=False):
            assert box.tolist() == pytest.approx(each.box, abs=1e-2)
        printed = capsys.readouterr().out.splitlines()
        assert sum(line.split()[0] in NAMES for line in printed) == len(expected.above(0.3).boxes)


def test_fixed_batch(exported, tmp_path):
    """A file with a fixed batch gets whole batches; what fills the last one is not returned."""
    model = onnx.load(exported)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    network, whole = OnnxModel(tmp_path / "four.onnx"), OnnxModel(exported)
    assert (network.batch_size, whole.batch_size, network.num_classes) == (4, None, 3)
    for number in (1, 4, 6):
        pixels, mask = letterboxed(number)
        assert same_objects(network(pixels, mask), decode(whole(pixels, mask))) > 20 * number


def test_quantised(exported, tmp_path):
    """ONNX Runtime's quantisation keeps a detector that can be used."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    file = tmp_path / "int8.onnx"
    quantization.quantize_dynamic(exported, file, weight_type=quantization.QuantType.QInt8)
    assert file.stat().st_size < exported.stat().st_size / 2
    pixels, mask = letterboxed(3)
    for ours, theirs in zip(
        decode(OnnxModel(exported)(pixels, mask)), decode(OnnxModel(file)(pixels, mask)), strict=True
    ):
        assert abs(len(ours) - len(theirs)) < 10
        torch.testing.assert_close(theirs.scores[:10], ours.scores[:10], atol=0.02, rtol=0)


def test_disagreement_is_refused(folder, exported, tmp_path, monkeypatch):
    """A file that finds other objects than its network is not written; the differences are said."""
    network = vismoe.load(folder)
    with torch.no_grad():
        network.head.box.bias[2] += 0.01
    monkeypatch.setattr(onnx_export, "_serialise", lambda *_: exported.read_bytes())
    with pytest.raises(ValueError, match=r"differ from the model's on .* boxes by up to 0\.\d+ pixels"):
        export_onnx(network, tmp_path / "other.onnx", dynamic_batch=True)
    with torch.no_grad():
        network.head.centre.bias -= 3
    with pytest.raises(ValueError, match="inf: another number of objects"):
        export_onnx(network, tmp_path / "other.onnx", dynamic_batch=True)
    assert not list(tmp_path.iterdir())


class Session:
    """In the place of ONNX Runtime's: finds what the network finds, changed."""

    def __init__(self, network, change=lambda found: found):
        self.network, self.change = network, change

    def run(self, names, inputs):
        found = decode_padded(self.network(*(torch.from_numpy(value) for value in inputs.values())))
        return [value.detach().numpy() for value in self.change(found)]


def test_comparison(monkeypatch):
    """A moved box, another score, class or number of objects is seen; the order of objects does not matter."""
    monkeypatch.setattr(box_agreement, "DRAWS", 1)
    network = detector("vit_tiny_patch16_224", embed_dim=16, depth=1, num_heads=2, img_size=32)

    def compared(change):
        done = compare_boxes(network, Session(network, change), (3, *SIZE), None)
        return done.difference, done.box_difference

    same = compare_boxes(network, Session(network), (3, *SIZE), None)
    assert (same.difference, same.box_difference, same.images + same.left_out) == (0, 0, 10)
    assert same.objects > 50
    assert compared(lambda found: [torch.cat([value[:, 5:6], value[:, :5], value[:, 6:]], 1) for value in found]) == (
        0,
        0,
    )
    first = torch.eye(100)[0]
    assert compared(lambda found: found._replace(scores=found.scores + 0.25 * first))[0] == pytest.approx(0.25)
    moved = compared(lambda found: found._replace(boxes=found.boxes + 0.5 * first[:, None]))
    assert 0.1 < moved[1] <= 0.501  # for each 100 pixels of a long side
    other = torch.tensor([1, 2, 0, -1])
    assert compared(lambda found: found._replace(labels=other[found.labels]))[1] == torch.inf
    fewer = compared(lambda found: found._replace(labels=torch.where(found.labels.cumsum(1) > 9, -1, found.labels)))
    assert fewer == (torch.inf, torch.inf)
    with torch.no_grad():
        network.head.centre.weight.zero_()
        network.head.centre.bias.fill_(-20)
    nothing = compare_boxes(network, Session(network), (3, *SIZE), 1)
    assert (nothing.objects, nothing.images) == (0, 10)


def outputs_of(centres, quality=None, boxes=None):
    """Outputs for one image: the logits of centres (K, h, w); boxes of 4 pixels that do not overlap."""
    height, width = centres.shape[1:]
    corners = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")) * 8.0
    apart = torch.cat([corners, corners + 4])
    quality = torch.full((1, height, width), 20.0) if quality is None else quality
    return Outputs(centres[None], quality[None], (apart if boxes is None else boxes)[None])


def centres_at(*logits, size=(9, 40)):
    """One class, with these logits at every third cell of a row: each is a peak."""
    centres = torch.full((1, *size), -30.0)
    for number, logit in enumerate(logits):
        row, column = divmod(3 * number, size[1] - 1)
        centres[0, 3 * row, column] = logit
    return centres


def test_close_calls():
    """Each decision that rounding may change is found, and none where there is a small distance."""

    def logit(score):
        return torch.logit(torch.tensor(score, dtype=torch.float64).square()).item()

    def call(centres, boxes=None):
        return first_close_call(outputs_of(centres, boxes=boxes))

    assert call(centres_at(2.0, 1.0, 1.0)) is None
    neighbours = centres_at(2.0)
    for distance, expected in ((1e-6, CENTRE), (1e-3, None)):
        neighbours[0, 0, 1] = 2.0 - distance
        assert call(neighbours) is expected
    assert call(centres_at(2.0, logit(0.01 * (1 + 2e-6)))) is SCORE
    assert call(centres_at(2.0, logit(0.01 * (1 + 1e-3)))) is None
    spread = torch.linspace(3, 1, 101).tolist()
    assert call(centres_at(*spread, size=(40, 40))) is None
    assert call(centres_at(*spread[:100], spread[99], size=(40, 40))) is RANK
    assert call(centres_at(*torch.linspace(3, 1, 300), 1.0, size=(90, 40))) is RANK
    assert call(centres_at(*torch.linspace(3, 1, 300), 0.9, size=(90, 40))) is None
    boxes = outputs_of(centres_at(2.0, 1.0)).boxes[0].clone()
    boxes[:, 0, 0] = torch.tensor([0.0, 0, 10, 16])
    for right, low, expected in ((6, 1.0, OVERLAPPING), (6.01, 1.0, None), (8, 2.0, ORDER), (8, 1.0, None)):
        boxes[:, 0, 3] = torch.tensor([0.0, 0, right, 16])
        assert call(centres_at(2.0, low), boxes) is expected


def test_experts_too_close_are_named(monkeypatch):
    """An image in which a router's choice is open is left out; tokens of padding do not count."""
    monkeypatch.setattr(box_agreement, "DRAWS", 1)
    network = sparse()
    router = network.trunk.blocks[0].mlp.router
    with torch.no_grad():
        router.weight[:] = router.weight[0]
    with pytest.raises(ValueError, match=r"in each of 12 random images .* \(a router's choice .* \(in 12\)\)"):
        compare_boxes(network, Session(network), (3, *SIZE), 4)
    logits = torch.tensor([[[3.0, 1.0], [2.0, 2.0], [0.0, 0.0], [5.0, 1.0]]])
    mask = torch.tensor([[True, False, False, True]])
    assert choice_gap(logits, 1, 2, mask).tolist() == [2.0, 4.0]


def test_masked_product_is_the_oracle():
    """Rows of padding go through no expert; the others are as in a slow product."""
    torch.manual_seed(0)
    layer = MoE(vismoe.TopKRouter(8, 4, k=2), vismoe.MLPExperts(8, 12, 4)).eval()
    tokens, mask = torch.randn(2, 7, 8), torch.rand(2, 7) < 0.6
    with torch.no_grad():
        layer.backend = loop
        expected = layer(tokens, mask)
        layer.backend = masked_export_product
        torch.testing.assert_close(layer(tokens, mask), expected)


def test_what_is_refused(exported, tmp_path):
    for network, message in (
        (sparse().bfloat16(), "torch.bfloat16"),
        (detector(depth=1, moe={"moe_layers": [0], "num_experts": 2, "capacity_factor": 1.5}), "drops tokens"),
        (OnnxModel(exported), "is an ONNX file already"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(network, tmp_path / "model.onnx")
    model = onnx.load(exported)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"label_names": None})
    onnx.save(model, tmp_path / "nameless.onnx")
    with pytest.raises(ValueError, match="a detector without class names"):
        OnnxModel(tmp_path / "nameless.onnx")


OTHERS = {
    "patches and class token": lambda: detector(
        "vmoe_vit", patch_size=8, embed_dim=32, depth=2, num_heads=2, img_size=32, moe={"num_experts": 4}
    ),
    "k = 2": lambda: detector(
        depth=1, moe={"moe_layers": [0], "num_experts": 3, "experts_per_token": 2, "combine": "renormalized"}
    ),
    "image router": lambda: detector(depth=1, moe={"moe_layers": [0], "num_experts": 3, "router": "image"}),
    "upcycled": lambda: vismoe.upcycle(
        detector("vmoe_pico_patch4_28_dense", depth=2), num_experts=2, moe_layers=[1]
    ).eval(),
    "upcycled timm": lambda: vismoe.upcycle(
        detector("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3, img_size=32), num_experts=2, moe_layers=[1]
    ).eval(),
    "rotary": lambda: detector("eva02_tiny_patch14_224", depth=2, img_size=28, patch_size=8),
    "convolutional network": lambda: detector("resnet18"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name, tmp_path):
    """Every kind of trunk, with a fixed batch."""
    network = OTHERS[name]()
    done = export_onnx(network, tmp_path / "model.onnx", batch_size=2)
    assert done.objects > 20
    pixels, mask = letterboxed(2)
    with torch.no_grad():
        assert (
            same_objects(feed(onnxruntime.InferenceSession(done.path), pixels, mask), decode(network(pixels, mask)))
            > 20
        )
    assert OnnxModel(done.path).pretrained_cfg["label_names"] == ["0", "1", "2"]
