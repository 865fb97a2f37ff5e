"""Trunks of all kinds: every parameter is trained, at any size.

python -m pytest tests/detection/test_trunks.py
"""

import pytest
import timm
import torch

import vismoe
from vismoe.detection import make_detector
from vismoe.weights import set_image_size

SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 32}
TRUNKS = {
    "mean of patches": ("vmoe_pico_patch4_28_every2_e8", {}),
    "representation layer": ("vmoe_s32_every2_e32", SMALL | {"depth": 2, "img_size": 64, "balance": "none"}),
    "attention pooling": ("vit_base_patch16_siglip_224", SMALL),
    "rotary": ("eva02_tiny_patch14_224", {"depth": 1, "img_size": 28, "patch_size": 8}),
    "convolutions": ("resnet18", {}),
    "blocks of several sizes": ("hiera_tiny_224", {}),
}


SLOW = ("blocks of several sizes", "convolutions")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TRUNKS]
)
def test_every_parameter_has_a_gradient(name, tmp_path):
    """Several processes need that: what the map does not use, such as a norm after pooling, is not in the network. It
    can be saved and loaded without."""
    architecture, options = TRUNKS[name]
    size = (224, 224) if architecture == "hiera_tiny_224" else (64, 96)
    torch.manual_seed(0)
    network = make_detector(timm.create_model(architecture, num_classes=0, **options), 3, size).train()
    outputs = network(torch.randn(2, 3, *size), torch.ones(2, *size, dtype=torch.bool))
    (outputs.centres.sum() + outputs.quality.sum() + outputs.boxes.sum()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    vismoe.save(network, tmp_path / "model", ["a", "b", "c"], problem_type="object-detection")
    pixels = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(vismoe.load(tmp_path / "model")(pixels).boxes, network.eval()(pixels).boxes)


@pytest.mark.parametrize("name", ["mean of patches", "attention pooling", "convolutions"])
def test_another_size(name, tmp_path):
    """The size of the input can be changed later, and is saved."""
    architecture, options = TRUNKS[name]
    network = make_detector(timm.create_model(architecture, num_classes=0, **options), 3, (64, 96)).eval()
    set_image_size(network, (96, 64), "it")
    pixels = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        outputs = network(pixels)
        vismoe.save(network, tmp_path / "model", ["a", "b", "c"])
        loaded = vismoe.load(tmp_path / "model")
        assert torch.equal(loaded(pixels).boxes, outputs.boxes)
    assert loaded.img_size == (96, 64)
    assert vismoe.weights.data_config(loaded)["input_size"] == (3, 96, 64)
    assert outputs.centres.shape[-2:] == (2 * 96 / (2 * network.stride[0]), 64 / network.stride[1])


def test_a_size_that_the_trunk_refuses():
    network = make_detector(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL), 3, (64, 96))
    with pytest.raises(ValueError, match="multiple of the patch size 16"):
        set_image_size(network, (65, 96), "it")
