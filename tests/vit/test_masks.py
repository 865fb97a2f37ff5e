"""pytest tests/vit/test_masks.py: padding changes nothing in an image's outputs, in routing, attention and pooling."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn

import vismoe

SPARSE = "vmoe_pico_patch2_8_every2_e8"
DENSE = "vmoe_pico_patch2_8_dense"
SHAPE = {"img_size": (24, 32), "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
COMPUTED = {"pos_embed": "sincos2d", "dynamic_img_size": True, "weight_init": ""}
"""Position embeddings that depend on the patch's row and column alone, so that images of all sizes have the same."""
POOLED = {"class_token": False, "global_pool": "avg"}
CONV = {"stem": "conv", **POOLED}

NETWORKS = {
    "sparse": (SPARSE, {}),
    "sparse, no class token": (SPARSE, POOLED),
    "sparse, convolutional stem": (SPARSE, CONV),
    "dense": (DENSE, {}),
    "dense, convolutional stem": (DENSE, CONV),
    "mean beside a class token and registers": (SPARSE, {"global_pool": "avg", "reg_tokens": 2}),
    "mean with a class token": (DENSE, {"global_pool": "avg", "pool_include_prefix": True}),
    "maximum": (SPARSE, {"class_token": False, "global_pool": "max"}),
    "maximum and mean": (DENSE, {"class_token": False, "global_pool": "avgmax"}),
    "attention pooling": (SPARSE, {"class_token": False, "global_pool": "map"}),
    "attention pooling, norms": (DENSE, {"global_pool": "map", "qk_norm": "scale"}),
    "difference of attentions": (SPARSE, {"attn_layer": "diff"}),
    "parallel attentions and registers": (SPARSE, {"reg_tokens": 1, "init_values": 0.5, "qk_norm": True}),
    "two experts and a shared one": (SPARSE, {"experts_per_token": 2, "shared": True, **POOLED}),
    "sigmoid": (SPARSE, {"router": "sigmoid", "experts_per_token": 2, "combine": "renormalized"}),
    "whole images": (SPARSE, {"router": "image", **POOLED}),
    "soft": (SPARSE, {"router": "soft", "slots_per_expert": 2, **POOLED}),
    "ensemble": (SPARSE, {"ensemble_size": 2}),
    "ensemble, mean": (SPARSE, {"ensemble_size": 2, "predictions": "mean", **POOLED}),
}
"""Whose answers for a padded image are those for the image alone."""
BY_SIZE = {
    "learned positions": (SPARSE, {"pos_embed": "learn"}),
    "expert choice": (SPARSE, {"router": "expert-choice", **POOLED}),
    "capacity": (SPARSE, {"capacity_factor": 1.0, "batch_priority": True}),
    "groups": (SPARSE, {"group_size": 49, "capacity_factor": 1.0}),
}
"""Whose answers also depend on the size of the padded image."""
SIZES = [(24, 32), (16, 20), (9, 32), (24, 3), (13, 18)]
"""Of the images in one batch, in pixels: without padding; padded by whole patches, and by parts of patches."""


def build(name, **options):
    torch.manual_seed(0)
    network, own = (NETWORKS | BY_SIZE)[name]
    if own.get("pos_embed") == "learn":
        options = {"dynamic_img_size": False, **options}
    model = vismoe.create_model(network, **SHAPE | COMPUTED | own | options).eval()
    with torch.no_grad():  # experts and pooling that matter, biases that show where padding is taken for tokens
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch(sizes=SIZES, fill=0.0):
    """Images at the top left, their masks of pixels, and what is in the padding."""
    height, width = SHAPE["img_size"]
    mask = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for one, (rows, columns) in zip(mask, sizes, strict=True):
        one[:rows, :columns] = True
    images = torch.randn(len(sizes), 3, height, width, generator=torch.Generator().manual_seed(1))
    return torch.where(mask[:, None], images, fill), mask


def outputs(model, images, mask):
    """Logits and features; maps too, which an ensemble has not."""
    with vismoe.condition(model, mask=mask):
        found = {"logits": model(images), "features": model.forward_features(images)}
        if not model.ensemble_size:
            found["maps"] = torch.stack(model.forward_intermediates(images, intermediates_only=True))
    return found


def token_mask(model, mask):
    """The same padding as a mask of tokens, if images end with patches."""
    patches = mask[:, ::4, ::4].flatten(1)
    return torch.cat([torch.ones(len(mask), model.num_prefix_tokens, dtype=torch.bool), patches], 1)


@pytest.mark.parametrize("name", NETWORKS | BY_SIZE)
def test_what_is_in_the_padding_changes_no_bit(name):
    """NaN or large numbers, in the padding of a mask of pixels or of tokens: outputs stay equal."""
    model = build(name)
    whole_patches = [(24, 32), (16, 20), (8, 32), (24, 4), (4, 4)]
    for sizes, form in ((SIZES, None), (whole_patches, partial(token_mask, model))):
        images, mask = batch(sizes)
        given = mask if form is None else form(mask)
        expected = outputs(model, images, given)
        for fill in (torch.nan, -1e30):
            found = outputs(model, batch(sizes, fill)[0], given)
            assert all(torch.equal(found[key], expected[key]) for key in expected), fill
        assert all(value.isfinite().all() for value in expected.values())
        if form is not None:
            of_pixels = outputs(model, images, mask)
            assert all(torch.equal(of_pixels[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_padded_image_is_the_image(name):
    """The oracle: each image by itself, without padding and without a mask, at its own size."""
    model, (images, mask) = build(name, dynamic_img_pad=True), batch(fill=torch.nan)
    found = outputs(model, images, mask)
    rows, prefix = found["features"].shape[0] // len(images), model.num_prefix_tokens
    logits = found["logits"].unflatten(0, (len(images), -1))
    features = found["features"].unflatten(0, (len(images), rows))
    for number, (height, width) in enumerate(SIZES):
        grid = -(-height // 4), -(-width // 4)
        alone = images[number : number + 1, :, :height, :width]
        torch.testing.assert_close(logits[number], model(alone))
        patches = features[number][:, prefix:].unflatten(1, (6, 8))
        kept = patches[:, : grid[0], : grid[1]].flatten(1, 2)
        expected = model.forward_features(alone)
        torch.testing.assert_close(torch.cat([features[number][:, :prefix], kept], 1), expected)
        assert patches.count_nonzero() == kept.count_nonzero()
        if "maps" in found:
            maps = torch.stack(model.forward_intermediates(alone, intermediates_only=True))[:, 0]
            torch.testing.assert_close(found["maps"][:, number, :, : grid[0], : grid[1]], maps)
            assert found["maps"][:, number].count_nonzero() == maps.count_nonzero()


def test_learned_positions_are_those_of_the_padded_image():
    """An image at the top left is a smaller image with that corner of the position embedding."""
    model, (images, mask) = build("learned positions"), batch([(16, 20)])
    small = build("learned positions", img_size=(16, 20))
    state = model.state_dict()
    positions = state["pos_embed"]
    corner = positions[:, 1:].unflatten(1, (6, 8))[:, :4, :5].flatten(1, 2)
    small.load_state_dict(state | {"pos_embed": torch.cat([positions[:, :1], corner], 1)})
    with vismoe.condition(model, mask=mask):
        torch.testing.assert_close(model(images), small(images[:, :, :16, :20]))


@pytest.mark.parametrize("name", NETWORKS | BY_SIZE)
def test_padded_tokens_reach_no_other(name):
    """Whatever stands in padded tokens between the blocks: outputs stay equal, because nothing reads it."""
    model, (images, mask) = build(name), batch()
    expected = outputs(model, images, mask)
    tokens = model.patch_embed.token_mask(mask)
    generator = torch.Generator().manual_seed(2)

    def disturb(block, inputs):
        padding = ~tokens.repeat_interleave(len(inputs[0]) // len(tokens), 0)
        return (inputs[0] + padding[..., None] * torch.randn(inputs[0].shape, generator=generator), *inputs[1:])

    for block in model.blocks:
        block.register_forward_pre_hook(disturb)
    found = outputs(model, images, mask)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "name", ["sparse", "sparse, convolutional stem", "attention pooling", "maximum", "soft", "dense"]
)
def test_gradients(name, recompute):
    """Of weights and of the images' pixels: those of the images alone; 0 in the padding, whatever is in it."""
    model, (images, mask) = build(name, dynamic_img_pad=True).train(), batch(fill=torch.nan)
    model.set_grad_checkpointing(recompute)
    for router in (module for module in model.modules() if hasattr(module, "reset_balance")):
        router.requires_grad_(False)  # another order of images would be balanced otherwise
    target = torch.randn(len(SIZES), 5, generator=torch.Generator().manual_seed(3))

    def gradients(loss, pixels):
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.autograd.grad(loss, [*wanted, pixels], materialize_grads=True)

    images.requires_grad_()
    with vismoe.condition(model, mask=mask):
        *found, of_pixels = gradients((model(images) * target).sum(), images)
    assert not of_pixels[~mask[:, None].expand_as(images)].any()
    expected = [torch.zeros_like(gradient) for gradient in found]
    for number, (height, width) in enumerate(SIZES):
        alone = images[number : number + 1, :, :height, :width].detach().requires_grad_()
        *own, of_own = gradients((model(alone) * target[number]).sum(), alone)
        torch.testing.assert_close(of_pixels[number : number + 1, :, :height, :width], of_own, rtol=1e-3, atol=1e-4)
        expected = [total + one for total, one in zip(expected, own, strict=True)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_padding_around_an_image():
    """Letterboxing puts an image in the middle: patches with one of its pixels are tokens, the others are not."""
    model = build("sparse")
    mask = torch.zeros(1, 24, 32, dtype=torch.bool)
    mask[:, 7:18] = True
    images = torch.randn(1, 3, 24, 32)
    with vismoe.condition(model, mask=mask), vismoe.record(model) as routing:
        expected = model(torch.where(mask[:, None], images, torch.nan))
    assert torch.equal(routing.layers["blocks.1.mlp"][0].routing.mask.sum(), torch.tensor(1 + 4 * 8))
    with vismoe.condition(model, mask=mask):
        assert torch.equal(model(torch.where(mask[:, None], images, 7.0)), expected)
    assert not torch.equal(model(images), expected)


@pytest.mark.parametrize("name", ["sparse", "mean with a class token", "maximum and mean", "attention pooling", "soft"])
def test_an_image_of_nothing_but_padding(name):
    """Its answers are finite, and the others' stay what they were."""
    model, (images, mask) = build(name), batch()
    expected = outputs(model, images, mask)["logits"].unflatten(0, (len(SIZES), -1))
    mask[2] = False
    found = outputs(model, images, mask)["logits"].unflatten(0, (len(SIZES), -1))
    assert found.isfinite().all()
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found[others], expected[others])


def test_without_fused_attention():
    """The same where timm computes attention step by step."""
    fused, (images, mask) = build("attention pooling"), batch()
    plain = build("attention pooling")
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for key, value in outputs(plain, images, mask).items():
        torch.testing.assert_close(value, outputs(fused, images, mask)[key])


def test_feature_extraction():
    """timm's extractor too; features of padding are 0, in every form of `forward_intermediates`."""
    shape = {key: value for key, value in SHAPE.items() if key != "num_classes"}
    trunk = timm.create_model(SPARSE, features_only=True, out_indices=(0, 2), stem="conv", **shape).eval()
    images, mask = batch(fill=torch.nan)
    with vismoe.condition(trunk, mask=mask):
        maps = trunk(images)
        patches = trunk.model.forward_intermediates(images, indices=[2], output_fmt="NLC", intermediates_only=True)
        final, pairs = trunk.model.forward_intermediates(images, indices=[2], return_prefix_tokens=True)
        entries = trunk.model.forward_intermediates(images, indices=[2], return_prefix_tokens=True, output_dict=True)
    tokens = mask[:, ::4, ::4]
    for one in maps:
        assert torch.equal(one.abs().sum(1) > 0, tokens)
    assert torch.equal(patches[0].mT.unflatten(2, (6, 8)), maps[1])
    assert torch.equal(pairs[0][0], maps[1])
    assert torch.equal(pairs[0][1], final[:, :1])  # without a final norm
    assert torch.equal(final[:, 1:].mT.unflatten(2, (6, 8)), maps[1])
    assert torch.equal(entries["image_features"], final)
    assert torch.equal(entries["image_intermediates"][0], maps[1])
    assert torch.equal(entries["image_intermediates_prefix"][0], final[:, :1])


class Wrapper(nn.Module):
    """A network inside another one."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, images):
        return self.trunk(images)


def test_a_wrapped_network():
    """A mask reaches a network inside another one."""
    model, (images, mask) = build("sparse"), batch()
    expected = outputs(model, images, mask)["logits"]
    wrapper = Wrapper(model)
    with torch.no_grad(), vismoe.condition(wrapper, mask=mask):
        torch.testing.assert_close(wrapper(images), expected)


@pytest.mark.slow
def test_a_compiled_network():
    """A mask reaches a compiled network, and is forgotten afterwards."""
    model, (images, mask) = build("sparse"), batch()
    expected = outputs(model, images, mask)["logits"]
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        unmasked = compiled(images)
        with vismoe.condition(compiled, mask=mask):
            torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(compiled(images), unmasked)


def test_recompute_outside_of_the_condition():
    """It would see another mask: an error, in a dense network too."""
    model, (images, mask) = build("dense").train(), batch()
    model.set_grad_checkpointing()
    with vismoe.condition(model, mask=mask):
        loss = model(images).sum()
    with pytest.raises(RuntimeError, match="must enclose backward too"):
        loss.backward()


TIMM = {
    "vit_tiny_patch16_224": {"dynamic_img_size": True},
    "vit_small_patch14_reg4_dinov2": {"dynamic_img_size": True},
    "eva02_tiny_patch14_224": {"dynamic_img_size": True},
    "vit_small_patch16_dinov3": {},
    "vit_base_patch16_rope_224": {"dynamic_img_size": True},
}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timms(name, sparse):
    """With `accept_masks`, dense or upcycled: what is in padding, in pixels or between blocks, changes no bit of the
    features of other tokens. Without a mask nothing changes."""
    torch.manual_seed(0)
    options = {"patch_size": 4, "img_size": (24, 32), "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    model = timm.create_model(name, **options | TIMM[name]).eval()
    if sparse:
        model = vismoe.upcycle(model, num_experts=4, moe_layers=[0, 1, 2])
    images, mask = batch()
    unmasked = model(images)
    model = vismoe.vit.accept_masks(model)
    assert torch.equal(model(images), unmasked)
    tokens = model.patch_embed.token_mask(mask)

    def features(pixels):
        with vismoe.condition(model, mask=mask):
            maps = model.forward_intermediates(pixels, intermediates_only=True, output_fmt="NLC")
            found = model.forward_features(pixels)
            return [found[tokens], *(one[tokens[:, model.num_prefix_tokens :]] for one in maps)]

    expected = features(images)
    disturbed = [features(batch(fill=torch.nan)[0])]
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, inputs: (inputs[0] + 3 * ~tokens[..., None], *inputs[1:]))
    disturbed.append(features(images))
    for found in disturbed:
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(model.forward_features(images)[tokens], expected[0])


def test_networks_that_cannot_read_masks():
    for name in ("resnet10t", "beit_base_patch16_224"):
        with pytest.raises(
            ValueError, match="cannot read masks: accepted are timm networks with PatchEmbed and, in each block, one of"
        ):
            vismoe.vit.accept_masks(timm.create_model(name, **({"depth": 1} if "beit" in name else {})))


class OtherAttention(Attention):
    """It might do anything."""


def test_what_is_refused():
    """Masks of other shapes and types; masks of pixels where none, or several, can read them; another mask besides."""
    model, (images, mask) = build("sparse"), batch()
    for wrong in (mask[:2], mask[:, :20], mask.flatten(1), mask[:, ::4, ::4].flatten(1)):
        with (
            pytest.raises(ValueError, match=r"expected \(5, 24, 32\), images × height × width, or \(5, 49\)"),
            vismoe.condition(model, mask=wrong),
        ):
            model(images)
    refused = pytest.raises(ValueError, match="expected one network of vismoe's")
    for other in (
        nn.ModuleList([model, build("dense")]),
        vismoe.MoE(vismoe.TopKRouter(8, 2), vismoe.MLPExperts(8, 8, 2)),
    ):
        with refused, vismoe.condition(other, mask=mask):
            pass
    with pytest.raises(ValueError, match="give one of them"), vismoe.condition(model, mask=mask):
        model(images, attn_mask=torch.ones(49, 49, dtype=torch.bool))
    unreadable = build("dense", attn_layer=OtherAttention)
    with (
        pytest.raises(ValueError, match="a mask for PatchEmbed and OtherAttention: accepted"),
        vismoe.condition(unreadable, mask=mask),
    ):
        unreadable(images)
    dropping = build("sparse", patch_drop_rate=0.5).train()
    with pytest.raises(ValueError, match="patch_drop_rate"), vismoe.condition(dropping, mask=mask):
        dropping(images)
