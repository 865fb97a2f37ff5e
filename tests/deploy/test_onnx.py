"""Exported files compute what their networks do, say what they are, and are not written where that fails.

pytest tests/deploy/test_onnx.py
"""

import json

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import vismoe
from vismoe.cli import main
from vismoe.data import open_data
from vismoe.deploy import export_onnx
from vismoe.deploy.agreement import choice_gap, compare
from vismoe.deploy.product import export_product
from vismoe.features import features
from vismoe.moe import MoE, loop
from vismoe.vit import SparseVisionTransformer
from vismoe.weights.exported.description import describe_model
from vismoe.weights.exported.onnx_model import OnnxModel


def tiny(num_classes=5, **moe):
    """One block, sparse."""
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": num_classes}
    return SparseVisionTransformer(**shape, moe={"moe_layers": [0], "num_experts": 3, **moe})


def feed(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


K1, K2 = {}, {"experts_per_token": 2, "combine": "renormalized", "balance": "loss"}
SIGMOID = {"experts_per_token": 2, "combine": "renormalized", "router": "sigmoid"}
IMAGE = {"router": "image"}


@pytest.mark.parametrize(
    "ways",
    [(K1, IMAGE), pytest.param((K2, SIGMOID), marks=pytest.mark.slow)],
    ids=["k1 and image", "k2 and sigmoid"],
)
def test_equals_the_network(ways, tmp_path):
    """At batches that it was not exported with, k = 1 and 2; also where one expert gets everything and others nothing.
    The network is the same before and after, in mode and backend too."""
    model = tiny(**ways[0]).train()
    model.blocks.append(tiny(**ways[1]).train().blocks[0])  # one export takes seconds, another layer in it less
    model.norm.eval()
    for block, moe in zip(model.blocks, ways, strict=True):
        block.mlp.backend = loop
        if "balance" not in moe:  # this one keeps the others empty
            block.mlp.router.balance_bias[2] = 100.0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = export_onnx(model, tmp_path / "model.onnx", dynamic_batch=True)
    assert (done.images, done.left_out, done.size) == (10, 0, done.path.stat().st_size)
    assert done.difference < 1e-5
    assert all(block.mlp.backend is loop for block in model.blocks)
    assert model.training
    assert not model.norm.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    model.eval()
    for batch in (1, 3, 16):
        pixels = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(feed(done.path, pixels), model(pixels), rtol=1e-5, atol=1e-5)


class Wide(nn.Module):
    """A shared module, and experts of another kind that follow the layouts."""

    def __init__(self, k=2, balance="bias"):
        super().__init__()
        torch.manual_seed(0)
        experts = vismoe.MLPExperts(12, 20, 4, activation=F.silu, gated=True, norm=True, bias=False)
        self.layer = MoE(vismoe.TopKRouter(12, 4, k, balance, "unit"), experts, shared=nn.Linear(12, 12))
        self.head = nn.Linear(12, 5)
        self.num_classes, self.pretrained_cfg = 5, {"input_size": (3, 4, 4), "architecture": "wide"}

    def forward(self, pixels):
        return self.head(self.layer(pixels.reshape(len(pixels), 4, 12)).mean(1))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return export_onnx(Wide(), tmp_path_factory.mktemp("wide") / "wide.onnx", batch_size=2)


def test_other_experts_and_shared(wide):
    """Gated experts with norms and without biases, a shared module, a fixed batch: the layer, by the oracle, is what
    ONNX Runtime computes."""
    model, pixels = Wide().eval(), torch.randn(2, 3, 4, 4)
    model.layer.backend = loop
    with torch.no_grad():
        torch.testing.assert_close(feed(wide.path, pixels), model(pixels), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        feed(wide.path, torch.randn(3, 3, 4, 4))


def test_is_plain_and_dropless(wide):
    """Operators of ONNX's own domain; no expert's product gets all tokens; each expert's weights lie there as they are
    used; nothing tells where it was made."""
    model = onnx.load(wide.path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    nodes = model.graph.node
    (split,) = [node for node in nodes if node.op_type == "Split" and len(node.output) == 4]
    makers = {output: node for node in nodes for output in node.output}
    products = [node for node in nodes if set(node.input) & set(split.output)]
    assert len(products) == 8  # up and gate of each expert
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert all(weights[node.input[1]] in ((20, 12), (12, 20)) for node in products)
    assert makers[split.input[0]].op_type == "Gather"
    assert not [shape for shape in weights.values() if len(shape) == 3 and shape[0] == 4]
    assert "site-packages" not in str(model)


def test_product_is_the_oracle():
    """In eager too, for tokens of very uneven load."""
    torch.manual_seed(0)
    layer = MoE(vismoe.TopKRouter(8, 4, k=2), vismoe.MLPExperts(8, 12, 4)).eval()
    layer.router.balance_bias[:] = torch.tensor([0.0, -9.0, 3.0, 0.0])
    tokens = torch.randn(2, 7, 8)
    with torch.no_grad():
        layer.backend = loop
        expected = layer(tokens)
        layer.backend = export_product
        torch.testing.assert_close(layer(tokens), expected)


def test_transformers(tmp_path):
    """transformers' networks give only their logits, and their classes' names, and must be told how images are
    prepared."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, id2label={0: "cat", 1: "dog", 2: "owl"})
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    said = describe_model(model)
    assert (said.preprocessing, said.label_names) == ({"input_size": [3, 8, 8]}, ["cat", "dog", "owl"])
    scaling = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}
    file = OnnxModel(export_onnx(model, tmp_path / "model.onnx", True, preprocessing=scaling).path)
    assert (file.num_classes, file.pretrained_cfg["label_names"]) == (3, ["cat", "dog", "owl"])
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(file(pixels), model(pixels).logits, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that answers differently to different images, with names and a preprocessing of its own."""
    torch.manual_seed(0)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, depth=2, num_experts=3, in_chans=1)
    nn.init.normal_(model.head.weight)
    names = [str(number) for number in range(10)]
    return vismoe.save(model, tmp_path_factory.mktemp("export") / "model", names, {"mean": [0.4], "std": [0.3]})


@pytest.fixture(scope="module")
def exported(folder):
    file = folder.parent / "digits.onnx"
    assert main(["export", str(folder), str(file), "--batch-size", "4", "--json"]) == 0
    return file


def test_command(folder, exported, tmp_path, capsys):
    """`eval` and `predict` say of the file what they say of the model: a batch that its own does not divide too."""
    figures = []
    for model in (folder, exported):
        assert main(["eval", str(model), "--data", "digits", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    for name in ("top1", "loss", "calibration_error", "images"):
        assert figures[1][name] == pytest.approx(figures[0][name], abs=1e-5), name
    assert figures[1]["load"] == {}
    for number in range(6):
        Image.effect_noise((9, 9), 20 * number).save(tmp_path / f"{number}.png")
    said = []
    for model in (folder, exported):
        assert main(["predict", str(model), str(tmp_path), "--topk", "10", "--format", "json"]) == 0
        said.append([{c["name"]: c["probability"] for c in r["classes"]} for r in json.loads(capsys.readouterr().out)])
    for ours, theirs in zip(*said, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


def test_metadata(folder, exported):
    """The file says how images are prepared and what the classes are, as the model does."""
    model, meta = vismoe.load(folder), onnxruntime.InferenceSession(exported).get_modelmeta()
    said = json.loads(meta.custom_metadata_map["vismoe"])
    assert said["architecture"] == "vmoe_pico_patch2_8_every2_e8"
    assert (said["version"], said["format"], said["problem_type"]) == (vismoe.__version__, 1, None)
    assert said["label_names"] == list(model.pretrained_cfg["label_names"])
    expected = {name: model.pretrained_cfg[name] for name in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    assert {name: said["preprocessing"][name] for name in expected} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in expected.items()
    }


class Liar(nn.Module):
    """Says one thing to those who export it, and another one to all others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.num_classes, self.pretrained_cfg = 5, {"input_size": (3, 2, 2)}

    def forward(self, pixels):
        logits = self.linear(pixels.flatten(1))
        return logits + 0.5 if torch.compiler.is_exporting() else logits


def test_disagreement_is_refused(tmp_path):
    """A file that does not compute what its network does is not written; the figures are said."""
    with pytest.raises(ValueError, match=r"differ from the model's by up to 0\.5 on 10 random images, more than 1e-04"):
        export_onnx(Liar(), tmp_path / "deep" / "liar.onnx")
    assert not list(tmp_path.iterdir())


class Undecided(nn.Module):
    """What it computes depends on the values of pixels."""

    num_classes, pretrained_cfg = 5, {"input_size": (3, 2, 2)}

    def forward(self, pixels):
        return pixels.flatten(1)[:, :5] if pixels.sum() > 0 else pixels.flatten(1)[:, 5:10]


def test_what_pytorch_cannot_export_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"PyTorch cannot export this Undecided to ONNX: [^\n]+$"):
        export_onnx(Undecided(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Session:
    """In the place of ONNX Runtime's: gives the network's own logits, but far off where `tie` says so."""

    def __init__(self, model, tie):
        self.model, self.tie = model, tie

    def run(self, names, inputs):
        pixels = torch.from_numpy(inputs["pixels"])
        with vismoe.record(self.model) as routing:
            logits = self.model(pixels)
        chosen = routing.layers["layer"][0].gates.argmax(-1).view(len(pixels), -1)
        return [(logits + 100.0 * self.tie(chosen).any(1, keepdim=True)).detach().numpy()]


def test_ties_are_left_out():
    """An image with a choice too close to call may come out otherwise, and is counted; where there are no others,
    others are drawn, but not for ever."""
    model = Wide(k=1, balance="none").eval()
    with torch.no_grad():
        model.layer.router.weight[1] = model.layer.router.weight[0]
    found = compare(model, Session(model, lambda chosen: chosen < 2), (3, 4, 4), None)
    assert found.difference == 0
    assert found.images > 0 < found.left_out
    assert (found.images + found.left_out) % 10 == 0
    assert compare(model, Session(model, lambda chosen: chosen < 4), (3, 4, 4), None).difference == pytest.approx(100)
    with torch.no_grad():
        model.layer.router.weight[:] = model.layer.router.weight[0]
    with pytest.raises(ValueError, match="in each of 120 random images some router's choice"):
        compare(model, Session(model, lambda chosen: chosen < 0), (3, 4, 4), 4)


def test_choice_gap():
    """The k-th choice's distance to the next one, in each image's closest token."""
    logits = torch.tensor([[[3.0, 1.0, 0.5], [2.0, 2.0, 0.0]], [[5.0, 1.0, 0.9], [0.0, 1.0, 4.0]]])
    torch.testing.assert_close(choice_gap(logits, 1, 2), torch.tensor([0.0, 3.0]))
    torch.testing.assert_close(choice_gap(logits.reshape(1, 4, 3), 2, 2), torch.tensor([0.5, 0.1]))
    assert choice_gap(logits, 3, 2).tolist() == [torch.inf, torch.inf]


def test_what_is_refused(tmp_path):
    """Each with what was given and what is accepted; nothing is written."""
    there = tmp_path / "there.onnx"
    there.write_text("precious")
    for model, arguments, message in (
        (tiny(), {"path": there}, "exists"),
        (tiny(), {"path": tmp_path / "model.pt"}, "ends in .onnx"),
        (tiny(), {"batch_size": 0}, "batch_size=0"),
        (tiny(), {"batch_size": 2, "dynamic_batch": True}, "only 1 with dynamic_batch"),
        (tiny(capacity_factor=1.5), {}, "blocks.0.mlp drops tokens"),
        (tiny(group_size=4), {}, "group_size=4"),
        (tiny().bfloat16(), {}, "torch.bfloat16"),
        (tiny().to("meta"), {}, "on meta"),
        (tiny(num_classes=0), {}, "features, not logits"),
        (nn.Linear(2, 2), {}, "Linear does not say"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(model, **{"path": tmp_path / "model.onnx"} | arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert there.read_text() == "precious"


def test_a_file_gives_answers_only(exported, tmp_path, capsys):
    """What needs features or weights says so, in one line, and writes nothing."""
    file, out = str(exported), str(tmp_path / "out")
    only = f"vismoe: error: {file}: an ONNX file can only predict (vismoe predict, eval): use the model folder"
    for arguments, message in (
        (["export", file, f"{out}.onnx"], f"vismoe: error: {file} is an ONNX file already"),
        (["embed", file, "--data", "digits", "--out", f"{out}.npy"], only),
        (["fewshot", file, "--data", "digits"], only),
        (["densify", file, out, "--data", "digits"], only),
        (["upcycle", file, out], only),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(message)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="an ONNX file can only predict"):
        features(OnnxModel(exported), open_data("digits").val)


def test_bad_files(folder, wide, tmp_path, capsys):
    """A file that is missing, damaged, somebody else's, or of a newer format: one line, exit code 2."""
    (tmp_path / "damaged.onnx").write_bytes(wide.path.read_bytes()[:1000])
    model = onnx.load(wide.path)
    for name, text in (("newer", '{"format": 2}'), ("broken", "{"), ("empty", "{}")):
        model.metadata_props[0].value = text
        onnx.save(model, tmp_path / f"{name}.onnx")
    model.ClearField("metadata_props")
    onnx.save(model, tmp_path / "foreign.onnx")
    for name, message in (
        ("gone", "no such file"),
        ("damaged", "cannot be opened as an ONNX file"),
        ("newer", "this vismoe reads up to 1"),
        ("broken", "has no valid description of its preprocessing"),
        ("empty", "it is incomplete"),
        ("foreign", "was not written by `vismoe export`"),
    ):
        assert main(["eval", str(tmp_path / f"{name}.onnx"), "--data", "digits"]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1, errors
        assert message in errors[0]
    assert main(["export", str(folder), str(tmp_path / "foreign.onnx")]) == 2
    assert "foreign.onnx exists" in capsys.readouterr().err


@pytest.mark.slow
def test_ensembles(tmp_path):
    """An ensemble that gives a row an image is exported, at any batch; one that gives a row a member is refused."""
    model = tiny(ensemble_size=2, num_experts=4).eval()
    with pytest.raises(ValueError, match='set predictions="mean"'):
        export_onnx(model, tmp_path / "model.onnx")
    model.predictions = "mean"
    done = export_onnx(model, tmp_path / "model.onnx", dynamic_batch=True)
    assert done.difference < 1e-5
    assert feed(done.path, torch.randn(3, 3, 8, 8)).shape == (3, 5)
