"""pytest tests/weights/test_transformers_folder.py: transformers' networks, upcycled, as folders."""

import json

import pytest
import torch

import vismoe
from vismoe.moe import MoE

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


def test_folders_that_cannot_be_read(tmp_path):
    """Another class than a model of transformers', weights that are not there or of another size."""
    folder = vismoe.save(vismoe.upcycle(NETWORKS["vit"]()), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"architectures": ["pipeline"]}, "no model class pipeline"),
        ({"architectures": ["NoSuchModel"]}, "no model class NoSuchModel"),
        ({"hidden_size": 64}, "does not fit ViTForImageClassification"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            vismoe.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        vismoe.load(folder)
