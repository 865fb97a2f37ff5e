"""pytest tests/features/test_features.py"""

from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import vismoe
from vismoe.data import ImageSet, evaluation_transform
from vismoe.features import classifiers, features
from vismoe.weights import data_config

NOISE = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), dtype=np.uint8)
TIMM = {
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"img_size": 32},
    "resnet10t": {},
    "convnext_atto": {},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "width_factor": 0.25},  # its classifier is a convolution
}


def image(pixels, index):
    return Image.fromarray(pixels[index])


def images(pixels=NOISE):
    return ImageSet(torch.zeros(len(pixels), dtype=torch.int64), partial(image, pixels))


def sparse(**arguments):
    torch.manual_seed(0)
    return vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **({"num_classes": 3} | arguments)).eval()


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("name", TIMM)
def test_they_are_timm_s_pre_logits(name):
    """Of timm's networks they are what timm calls so, whatever the classifier is, and `linear(features)` the logits."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **TIMM[name]).eval()
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    found = features(model, images(), batch_size=2)
    pixels = torch.stack([evaluation_transform(data_config(model))(images().sample(i))["image"] for i in range(5)])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if len(heads := classifiers(model)) == 1 and isinstance(heads[0], nn.Linear):
            torch.testing.assert_close(heads[0](found), model(pixels), rtol=1e-4, atol=1e-5)


def test_order_mode_and_batches():
    """The set's order, whatever the batch; neither mode nor balancing is touched; no inference tensors, which a head
    could not be trained on."""
    model = sparse().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = features(model, images(), batch_size=2)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.shape == (5, model.num_features)
    assert found.dtype == torch.float32
    assert torch.equal(found, features(model, images(), batch_size=2))
    torch.testing.assert_close(found[3], features(model, images(NOISE[3:4]))[0])
    nn.Linear(found.shape[1], 2)(found).sum().backward()


def test_networks_without_classes_give_their_output():
    """With num_classes=0 the same weights give the same features."""
    with_head, without = sparse(), sparse(num_classes=0)
    without.load_state_dict({k: v for k, v in with_head.state_dict().items() if not k.startswith("head.")})
    assert torch.equal(features(without, images()), features(with_head, images()))


def test_views():
    """Mirrored features are those of mirrored images; of both views it is the mean."""
    model = sparse()
    mirrored = features(model, images(np.ascontiguousarray(NOISE[:, :, ::-1])))
    torch.testing.assert_close(features(model, images(), views=("mirrored",)), mirrored)
    mean = (features(model, images()) + mirrored) / 2
    torch.testing.assert_close(features(model, images(), views=("plain", "mirrored")), mean)
    with pytest.raises(ValueError, match="accepted are some of plain, mirrored"):
        features(model, images(), views=("upside-down",))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "swin_t"])
def test_torchvision_s(name):
    """Their classifiers have other names: what the last linear map is handed makes their logits."""
    torch.manual_seed(0)
    small = {"image_size": 32} if name == "vit_b_16" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=3, **small).eval()
    preparation = {"input_size": (3, 32, 32)}
    found = features(model, images(), preparation=preparation)
    transform = evaluation_transform(data_config(model) | preparation)
    (head,) = classifiers(model)
    with torch.no_grad():
        expected = model(torch.stack([transform(images().sample(i))["image"] for i in range(5)]))
        torch.testing.assert_close(head(found), expected, rtol=1e-4, atol=1e-5)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "ConvNext"])
def test_transformers(transformers, kind):
    """Of a classifier of transformers': what its head is handed, at its own size. Of the bare network: its pooled
    output, else the class token."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **(
            {"image_size": 32, "num_labels": 3}
            | (dict(SMALL, patch_size=8) if kind != "ConvNext" else {"depths": [1] * 4})
        )
    )
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    found = features(model, images())
    size = {"input_size": (3, 32, 32)}
    transform = evaluation_transform(data_config(model) | size)
    pixels = torch.stack([transform(images().sample(i))["image"] for i in range(5)])
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(found), model(pixels).logits, rtol=1e-4, atol=1e-5)
        bare = getattr(model, model.base_model_prefix)
        output = bare(pixels)
    pooled = output.pooler_output if output.pooler_output is not None else output.last_hidden_state[:, 0]
    torch.testing.assert_close(features(bare, images()), pooled, rtol=1e-4, atol=1e-5)


def test_transformers_of_two_towers(transformers):
    """Where the configuration is one of images and text, the size is that of the images."""
    config = transformers.SiglipConfig(vision_config=dict(SMALL, image_size=32, patch_size=8), num_labels=3)
    model = transformers.SiglipForImageClassification(config).eval()
    assert features(model, images()).shape == (5, 16)


def test_what_gives_no_vector_is_refused():
    """Maps of features, and a network whose classifier cannot be told, are named."""
    model = timm.create_model("resnet10t", num_classes=0, global_pool="")
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    with pytest.raises(ValueError, match=r"ResNet gives features of shape \(512, 2, 2\), not one vector"):
        features(model, images())
