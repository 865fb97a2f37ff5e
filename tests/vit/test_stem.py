"""pytest tests/vit/test_stem.py: tokens by convolutions in place of one linear map of each patch."""

import pytest
import torch
from torch import nn

import vismoe


def small(**options) -> nn.Module:
    options = {"num_classes": 3, "in_chans": 1, "stem": "conv"} | options
    return vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **options)


@pytest.mark.parametrize(("patch", "image", "grid"), [(2, 8, 4), (4, 16, 4), (8, 40, 5)])
def test_each_convolution_halves(patch, image, grid):
    """As many tokens as patches of that size, by log2(patch) convolutions of 3 × 3 that double the channels up to the
    width."""
    model = small(patch_size=patch, img_size=image)
    convolutions = [module for module in model.patch_embed.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == patch.bit_length() - 1
    assert [c.out_channels for c in convolutions] == [64 // 2**i for i in reversed(range(len(convolutions)))]
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((3, 3), (2, 2))}
    assert model.patch_embed.grid_size == (grid, grid)
    tokens = model.forward_features(torch.randn(2, 1, image, image))
    assert tokens.shape == (2, grid * grid + 1, 64)


def test_images_of_a_batch_do_not_meet():
    """Not in training either: no statistics are taken over the batch."""
    model = small().train()
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.patch_embed(images)[:1], model.patch_embed(images[:1]))


@pytest.mark.parametrize(("stem", "patch", "image"), [("conv", 7, 28), ("conv", 1, 8), ("fft", 2, 8)])
def test_what_there_is_no_stem_for(stem, patch, image):
    """Patches that are no power of two, and other stems."""
    with pytest.raises(ValueError, match='accepted are "patch", and "conv" for 2, 4, 8, 16 or 32'):
        small(stem=stem, patch_size=patch, img_size=image)


def test_it_comes_back_from_a_folder(tmp_path):
    """config.json says which stem it was; timm opens it too."""
    import timm

    model = small().eval()
    vismoe.save(model, tmp_path / "m")
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)
    assert torch.equal(vismoe.load(tmp_path / "m")(images), expected)
    opened = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert torch.equal(opened(images), expected)
