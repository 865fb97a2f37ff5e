"""pytest tests/weights/test_transformers.py: transformers opens folders with timm trunks, once vismoe is imported."""

import pytest
import timm
import torch
from PIL import Image

import vismoe
from vismoe.inference import predict
from vismoe.weights import data_config

transformers = pytest.importorskip("transformers")

NAMES = ["ant", "bee", "cat"]
MODELS = {
    "preset": lambda: vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3),
    "upcycled": lambda: vismoe.upcycle(
        timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, embed_dim=48, depth=4, num_heads=2)
    ),
    "low-rank": lambda: vismoe.upcycle(
        timm.create_model("vit_small_patch14_dinov2", num_classes=3, img_size=28, embed_dim=48, depth=4, num_heads=2),
        experts="low-rank",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_auto_class_and_pipeline(name, tmp_path):
    """The same logits, and the same answer about an image, without any class of ours being named."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    torch.nn.init.normal_(model.head.weight)
    folder = vismoe.save(model, tmp_path / "model", NAMES)
    opened = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, *data_config(model)["input_size"])
    with torch.inference_mode():
        torch.testing.assert_close(opened(images).logits, model(images))
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    answers = transformers.pipeline("image-classification", model=str(folder))(image)
    (ours,) = predict(vismoe.load(folder), image)
    assert [answer["label"] for answer in answers] == [label for label, _ in ours.classes]
    assert [answer["score"] for answer in answers] == pytest.approx([score for _, score in ours.classes], abs=1e-4)
