"""Presets by name, through vismoe and through timm."""

import pytest
import timm
import torch

import vismoe


def test_timm_builds_the_same():
    """timm.create_model(name) and vismoe.create_model(name) give equal weights from equal seeds."""
    models = []
    for create in (timm.create_model, vismoe.create_model):
        torch.manual_seed(3)
        models.append(create("vmoe_pico_patch2_8_every2_e8", num_classes=7))
    for given, expected in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(given, expected)


def test_every_preset_is_timms_too():
    """list_models and timm.list_models agree, and patterns select."""
    assert set(vismoe.list_models()) <= set(timm.list_models("vmoe_*"))
    assert vismoe.list_models("vmoe_h14_*_e32") == ["vmoe_h14_every2_e32", "vmoe_h14_last5_e32"]
    assert vismoe.list_models("resnet*") == []


def test_unknown_names_get_near_matches():
    """A typo is answered with what was probably meant."""
    with pytest.raises(ValueError, match="vmoe_tiny_patch16_224_every2_e8"):
        vismoe.create_model("vmoe_tiny_patch16_every2_e8")


def test_unknown_options_are_named():
    """An option that no network has is a ValueError with its name."""
    with pytest.raises(ValueError, match="wings"):
        vismoe.create_model("vmoe_pico_patch2_8_dense", wings=2)


@pytest.mark.parametrize("create", [timm.create_model, vismoe.create_model])
def test_no_published_weights(create):
    """pretrained=True never gives random weights silently."""
    with pytest.raises(ValueError, match="no weights are published"):
        create("vmoe_pico_patch2_8_dense", pretrained=True)


def test_meta_device():
    """The largest preset is built without allocating its 59 GB."""
    with torch.device("meta"):
        model = vismoe.create_model("vmoe_15b_every2_e32")
    assert all(parameter.is_meta for parameter in model.parameters())
