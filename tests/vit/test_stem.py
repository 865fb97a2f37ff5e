"""pytest tests/vit/test_stem.py: tokens by convolutions in place of one linear map of each patch."""

import pytest
import timm
import torch
from torch import nn

import vismoe
from vismoe.weights.fitting import set_image_size


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


def test_the_patch_size_is_the_stride_of_the_stem():
    """Whoever asks a patch embedding for its patch size, reduction or grid gets pixels, as from timm's PatchEmbed."""
    conv, linear = (small(patch_size=8, img_size=(16, 40), stem=stem).patch_embed for stem in ("conv", "patch"))
    for embed in (conv, linear):
        assert (embed.patch_size, embed.feat_ratio(), embed.feat_ratio(as_scalar=False)) == ((8, 8), 8, (8, 8))
        assert (embed.img_size, embed.grid_size, embed.num_patches) == ((16, 40), (2, 5), 10)
        assert embed.dynamic_feat_size((24, 64)) == (3, 8)
        embed.set_input_size(img_size=(32, 16), patch_size=(8, 8))
        assert (embed.img_size, embed.grid_size, embed.num_patches) == ((32, 16), (4, 2), 8)
    with pytest.raises(ValueError, match="patch_size=4: the convolutional stem has 8"):
        conv.set_input_size(patch_size=4)


SIZES = [(16, 16), (15, 15), (13, 30), (9, 17), (8, 40), (1, 3)]
"""Of images: square or not; multiples of the patch size, 8, or not."""


@pytest.mark.parametrize("way", ["dynamic", "fixed", "resized"])
@pytest.mark.parametrize("size", SIZES)
def test_feature_maps_of_any_size(size, way):
    """`features_only` gives maps of ⌈side ÷ patch⌉ tokens, in their places: each is the block's token, row by row."""
    torch.manual_seed(0)
    options = {"dynamic": {"dynamic_img_size": True}, "fixed": {"img_size": size}, "resized": {}}[way]
    name, shape = "vmoe_pico_patch2_8_every2_e8", {"stem": "conv", "patch_size": 8, "in_chans": 1, "img_size": 16}
    trunk = timm.create_model(name, features_only=True, out_indices=(1, 3), **shape | options).eval()
    if way == "resized":
        trunk.model.set_input_size(img_size=size)
    tokens = []
    trunk.model.blocks[3].register_forward_hook(lambda module, inputs, output: tokens.append(output[:, 1:]))
    maps = trunk(torch.randn(2, 1, *size))
    height, width = -(-size[0] // 8), -(-size[1] // 8)
    assert [tuple(one.shape) for one in maps] == [(2, 64, height, width)] * 2
    assert torch.equal(maps[1], tokens[0].unflatten(1, (height, width)).permute(0, 3, 1, 2))
    assert trunk.feature_info.reduction() == [8, 8]


def test_a_size_that_the_patch_does_not_divide_comes_back_from_a_folder(tmp_path):
    """Built with it, or resized to it."""
    built, resized = small(img_size=(9, 13), patch_size=4).eval(), small(img_size=8, patch_size=4).eval()
    set_image_size(resized, 13, "the network")
    for number, (model, size) in enumerate(((built, (9, 13)), (resized, (13, 13)))):
        vismoe.save(model, tmp_path / str(number))
        images = torch.randn(2, 1, *size)
        assert torch.equal(vismoe.load(tmp_path / str(number))(images), model(images))


@pytest.mark.parametrize(("stem", "patch", "image"), [("conv", 7, 28), ("conv", 1, 8), ("conv", 64, 64), ("fft", 2, 8)])
def test_what_there_is_no_stem_for(stem, patch, image):
    """Patches that are no power of two, and other stems."""
    with pytest.raises(ValueError, match='accepted are "patch", and "conv" for 2, 4, 8, 16 or 32'):
        small(stem=stem, patch_size=patch, img_size=image)


def test_it_comes_back_from_a_folder(tmp_path):
    """config.json says which stem it was; timm opens it too."""
    model = small().eval()
    vismoe.save(model, tmp_path / "m")
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)
    assert torch.equal(vismoe.load(tmp_path / "m")(images), expected)
    opened = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert torch.equal(opened(images), expected)
