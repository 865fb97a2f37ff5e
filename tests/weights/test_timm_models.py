"""pytest tests/weights/test_timm_models.py: any other network of timm's, by `timm:NAME`."""

import pytest
import timm
import torch

import vismoe


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_size_and_channels_are_as_asked_for(name, tmp_path):
    """A network that takes any size and one that does not: both are told what images they get, and say so; saved and
    opened they are the same network."""
    model = vismoe.create_model(f"timm:{name}", num_classes=4, in_chans=1, img_size=64).eval()
    assert model.pretrained_cfg["input_size"] == (1, 64, 64)
    assert model.pretrained_cfg["mean"] == (0.5,)
    images = torch.randn(2, 1, 64, 64)
    expected = model(images)
    assert expected.shape == (2, 4)
    vismoe.save(model, tmp_path / "m")
    assert torch.equal(vismoe.load(tmp_path / "m")(images), expected)


def test_alone_it_is_timm_s_own():
    """Nothing is changed that was not asked for."""
    torch.manual_seed(0)
    ours = vismoe.create_model("timm:mobilenetv3_small_050", num_classes=1000)
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv3_small_050")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.pretrained_cfg["mean"] == theirs.pretrained_cfg["mean"]


def test_names_that_timm_does_not_know():
    """Near ones are offered."""
    with pytest.raises(
        ValueError, match=r"timm has no model 'mobilenetv3_smal_050' .did you mean mobilenetv3_small_050"
    ):
        vismoe.create_model("timm:mobilenetv3_smal_050")


def test_options_of_sparse_models_are_refused():
    """A dense network has no experts to number."""
    with pytest.raises(ValueError, match="has no option 'num_experts'"):
        vismoe.create_model("timm:mobilenetv3_small_050", num_experts=4)
