"""pytest tests/weights/test_transformers_folder.py: transformers' networks, upcycled, as folders."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import vismoe
from vismoe.inference import predict
from vismoe.moe import MoE
from vismoe.weights.huggingface.processor import read_processor

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = SIZES | {"image_size": 32, "patch_size": 8, "num_labels": 3}
NETWORKS = {
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES)),
    "dinov2": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**IMAGES)),
    "bert with shared weights": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, vocab_size=50)),
}
WAYS = [None, {}, {"experts": "low-rank", "rank": 2}, {"split": 2}]


def logits(model, name):
    generator = torch.Generator().manual_seed(0)
    if name.startswith("bert"):
        return model(torch.randint(0, 50, (2, 7), generator=generator)).logits
    return model(torch.randn(2, 3, 32, 32, generator=generator)).logits


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name, tmp_path):
    """Dense, and sparse in every way: the class, the sparse layers and the outputs are what they were."""
    torch.manual_seed(0)
    parent = NETWORKS[name]().eval()
    for number, way in enumerate(WAYS):
        model = parent if way is None else vismoe.upcycle(parent, **way).eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        again = vismoe.load(vismoe.save(model, tmp_path / str(number)))
        assert type(again) is type(parent)
        assert sum(isinstance(module, MoE) for module in again.modules()) == (0 if way is None else 2)
        torch.testing.assert_close(logits(again, name), logits(model, name), rtol=0, atol=0)


def test_what_transformers_wrote_is_a_parent(tmp_path):
    """save_pretrained, then vismoe.load and upcycle; a densified one opens with transformers' Auto class again."""
    parent = NETWORKS["vit"]().eval()
    parent.save_pretrained(tmp_path / "hf")
    sparse = vismoe.upcycle(vismoe.load(tmp_path / "hf"))
    torch.testing.assert_close(logits(sparse, "vit"), logits(parent, "vit"), rtol=0, atol=1e-5)
    dense = vismoe.densify(sparse, [torch.randn(2, 3, 32, 32)])
    folder = vismoe.save(dense, tmp_path / "dense")
    opened = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(opened, "vit"), logits(dense, "vit"))


def test_folders_of_the_first_format(tmp_path):
    """The dense configuration with one entry more, as this was written before, opens with vismoe.load."""
    model = vismoe.upcycle(NETWORKS["vit"]()).eval()
    folder = vismoe.save(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    labels = {name: config[name] for name in ("id2label", "label2id", "problem_type", "vismoe_moe")}
    (folder / "config.json").write_text(json.dumps(config["dense"] | labels))
    torch.testing.assert_close(logits(vismoe.load(folder), "vit"), logits(model, "vit"), rtol=0, atol=0)


AUTO = {"vit": "AutoModelForImageClassification", "dinov2": "AutoModelForImageClassification"}
AUTO["bert with shared weights"] = "AutoModelForMaskedLM"


@pytest.mark.parametrize("name", NETWORKS)
def test_upcycled_folders_open_with_transformers_auto_classes(name, tmp_path):
    """The same outputs; what is saved again, by transformers or by vismoe.save, opens with vismoe.load."""
    torch.manual_seed(0)
    model = vismoe.upcycle(NETWORKS[name](), experts="low-rank", rank=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    folder = vismoe.save(model, tmp_path / "model")
    auto = getattr(transformers, AUTO[name])
    opened = auto.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(opened, name), logits(model, name), rtol=0, atol=1e-6)
    opened.save_pretrained(tmp_path / "theirs")
    vismoe.save(opened, tmp_path / "ours")
    for again in (vismoe.load(tmp_path / "theirs"), vismoe.load(tmp_path / "ours")):
        assert type(again) is type(model)
        torch.testing.assert_close(logits(again, name), logits(model, name), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"use vismoe\.load"):
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_pipeline(name, tmp_path):
    """transformers' pipeline gives the answers of vismoe.predict, with the names of the classes."""
    torch.manual_seed(0)
    model = vismoe.upcycle(NETWORKS[name]()).eval()
    torch.nn.init.normal_(model.classifier.weight)
    preprocessing = {"input_size": (3, 32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 1.0}
    folder = vismoe.save(model, tmp_path / "model", ["ant", "bee", "cat"], preprocessing)
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    answers = transformers.pipeline("image-classification", model=str(folder))(image)
    (ours,) = predict(vismoe.load(folder), image)
    assert [answer["label"] for answer in answers] == [label for label, _ in ours.classes]
    assert [answer["score"] for answer in answers] == pytest.approx([score for _, score in ours.classes], abs=1e-4)


IN_EITHER_ORDER = """
import os, sys, torch, timm  # neither of the two, and most of the time that they take
for first, second in (("vismoe", "transformers"), ("transformers", "vismoe")):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, first
        continue
    assert not {first, second} & set(sys.modules)
    __import__(first)
    if first == "vismoe":
        assert "transformers" not in sys.modules
    __import__(second)
    from transformers import AutoConfig, AutoModelForImageClassification as Auto
    folder = sys.argv[1]
    print(AutoConfig.from_pretrained(folder).model_type, type(Auto.from_pretrained(folder)).__name__, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
def test_it_does_not_matter_what_is_imported_first(tmp_path):
    """And `import vismoe` alone does not import transformers, which takes a second."""
    folder = vismoe.save(vismoe.upcycle(NETWORKS["vit"]()), tmp_path / "model")
    command = [sys.executable, "-c", IN_EITHER_ORDER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["vismoe_upcycled UpcycledForImageClassification"] * 2, done.stderr


def test_folders_that_cannot_be_read(tmp_path):
    """Another class than a model of transformers', weights that are not there or of another size."""
    folder = vismoe.save(vismoe.upcycle(NETWORKS["vit"]()), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"architectures": ["pipeline"]}, "no model class pipeline"),
        ({"architectures": ["NoSuchModel"]}, "no model class NoSuchModel"),
        ({"hidden_size": 64}, "does not fit ViTForImageClassification"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"dense": config["dense"] | change}))
        with pytest.raises(ValueError, match=message):
            vismoe.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        vismoe.load(folder)


@pytest.mark.parametrize("change", [{"image_std": [0.5, 0, 0.5]}, {"size": 0, "crop_size": 4, "do_center_crop": True}])
def test_preparations_that_make_no_image_are_named(change, tmp_path):
    """A division by zero: the file is named."""
    good = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not a valid preprocessing of images"):
        read_processor(tmp_path)
