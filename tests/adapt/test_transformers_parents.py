"""pytest tests/adapt/test_transformers_parents.py: networks of transformers' as what an adaptation starts from."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vismoe
from vismoe.adapt import Options, finetune, freeze
from vismoe.adapt.classification.initial_model import initial_model, open_start
from vismoe.adapt.splits import open_splits
from vismoe.data import open_data
from vismoe.features import classifiers
from vismoe.inference import evaluate, predict
from vismoe.moe import MoE
from vismoe.training import Recipe
from vismoe.training.state import begin
from vismoe.weights import TransformersNetwork, as_network, data_config, load_network, open_trained

from .test_finetune import COLOURS, fill, image

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = SIZES | {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXT |= {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
CPU = torch.device("cpu")


def trunk(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")
    given = {"vision_config": IMAGES, "text_config": TEXT} if kind in ("CLIP", "Siglip") else IMAGES
    return getattr(transformers, f"{kind}Model")(config(**given)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pictures") / "colours")


def written(model, path, **entries):
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(entries))
    return path


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "Beit", "CLIP", "Siglip"])
def test_a_trunk_becomes_the_classifier_that_transformers_has(kind, tmp_path):
    """With the trunk's weights: what the new class makes of its own weights there is what the trunk makes."""
    model = trunk(kind)
    model.save_pretrained(tmp_path / "trunk")
    start = open_start(f"local-dir:{tmp_path / 'trunk'}", 5, 32, CPU)
    auto = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "trunk", num_labels=5)
    assert type(start.model) is type(auto)
    auto.load_state_dict(
        auto.state_dict() | {name: p for name, p in start.model.named_parameters() if "classif" in name}
    )
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(start.eval()(pixels), auto.eval()(pixels).logits)
    assert len(classifiers(start)) == 1
    assert start.num_classes == 5


def test_a_trunk_without_such_a_class_is_refused(tmp_path):
    """With what would be accepted."""
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**IMAGES)).save_pretrained(tmp_path / "trunk")
    with pytest.raises(ValueError, match=r"ViTMAEModel has no classifier.*accepted are"):
        open_start(str(tmp_path / "trunk"), 5, 32, CPU)


@pytest.mark.parametrize("kind", ["ViT", "CLIP"])
def test_another_image_size_is_what_transformers_interpolates(kind):
    """Position embeddings for other images are baked in, equal to those that the class makes as it goes."""
    network = as_network(trunk(kind))
    network.reset_classifier(3)
    pixels = torch.randn(2, 3, 48, 48)
    expected = network.model(pixels, interpolate_pos_encoding=True).logits
    network.set_input_size(48)
    torch.testing.assert_close(network(pixels), expected)
    assert network.model.config.to_dict().get("vision_config", network.model.config.to_dict())["image_size"] == 48
    with pytest.raises(ValueError, match="multiple of the patch"):
        network.set_input_size(50)


def test_a_network_of_one_size_keeps_it():
    """BEiT's tables of relative positions are of its own size."""
    config = transformers.BeitConfig(**IMAGES, use_relative_position_bias=True)
    network = as_network(transformers.BeitForImageClassification(config))
    assert not network.resizable
    with pytest.raises(ValueError, match="accepts only images of 32 pixels"):
        network.set_input_size(48)


def test_preparation_is_the_folders(tmp_path):
    """Mean, std, size and crop of preprocessor_config.json; without one those of transformers' class."""
    model = trunk("Dinov2")
    entries = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "do_center_crop": True}
    entries |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}}
    found = data_config(load_network(written(model, tmp_path / "model", **entries)))
    assert found["mean"] == (0.1, 0.2, 0.3)
    assert found["std"] == (0.4, 0.5, 0.6)
    assert found["input_size"] == (3, 24, 24)
    assert (found["crop_pct"], found["interpolation"]) == (0.75, "bilinear")
    assert data_config(trunk("ViT"))["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not a valid preprocessing"):
        load_network(written(model, tmp_path / "model", size="large"))


def test_layer_decay_sees_the_blocks():
    """The further from the head, the slower: embeddings, four blocks, the rest."""
    network = as_network(trunk("ViT"))
    network.reset_classifier(3)
    optimizer = begin(network, Recipe(name="x", data="digits", layer_decay=0.5, steps=1)).optimizer
    scales = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    vit = network.model.vit
    assert scales[id(vit.embeddings.cls_token)] == pytest.approx(0.5**5)
    assert [scales[id(next(block.parameters()))] for block in network.blocks] == pytest.approx(
        [0.5**n for n in (4, 3, 2, 1)]
    )
    assert scales[id(network.model.classifier.weight)] == 1


def test_the_last_third():
    """Two of four blocks, the norm behind them and the head."""
    network = as_network(trunk("Dinov2"))
    network.reset_classifier(3)
    freeze(network, "last-third")
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    blocks = [all(p.requires_grad for p in block.parameters()) for block in network.blocks]
    assert blocks == [False, False, True, True]
    assert not any("embeddings" in name for name in trained)
    assert any("dinov2.layernorm" in name for name in trained)


@pytest.mark.parametrize(("kind", "train"), [("ViT", "last-third"), ("Dinov2", "experts")])
def test_finetune(kind, train, folder, tmp_path):
    """From a trunk to a run whose model transformers opens, with the names of the classes and the same answers."""
    source = written(trunk(kind), tmp_path / "trunk", size={"height": 32, "width": 32})
    options = Options(str(folder), str(source), train=train, epochs=1, num_experts=3, image_size=16)
    initial_model(options, open_splits(options.data, options.seed, 0.1), tmp_path / "begun", CPU, 0, print)
    found = finetune(options, tmp_path / "run", device="cpu")
    before = load_file(tmp_path / "begun" / "initial" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("embeddings" in name for name in moved)
    network = found.run.load_model()
    assert isinstance(network, TransformersNetwork)
    assert sum(isinstance(module, MoE) for module in network.modules()) == 2
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model").eval()
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(opened(pixels).logits, network(pixels))
    answers = transformers.pipeline("image-classification", model=str(tmp_path / "run" / "model"))(
        image(COLOURS["blue"], 777).resize((16, 16), Image.Resampling.BICUBIC)
    )
    (ours,) = predict(network, image(COLOURS["blue"], 777).resize((16, 16), Image.Resampling.BICUBIC))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(dict(ours.classes), abs=1e-4)
    assert "library_name: transformers" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_result_is_a_parent_again(folder, tmp_path):
    """A sparse folder of transformers' is gone on with, with other classes."""
    model = vismoe.upcycle(transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES)), num_experts=3)
    source = vismoe.save(model, tmp_path / "sparse", ["a", "b"])
    assert open_trained(str(source)).pretrained_cfg["label_names"] == ["a", "b"]
    found = finetune(Options(str(folder), str(source), train="head", image_size=16), tmp_path / "run", device="cpu")
    network = found.run.load_model()
    assert network.moe.num_experts == 3
    assert evaluate(network, open_data(str(folder)).val).scores.shape[1] == 3
