"""pytest tests/vit/test_timm_surface.py"""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import vismoe
from vismoe.moe import MoE

SPARSE = "vmoe_pico_patch2_8_every2_e8"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sparse(**overrides):
    """4 blocks of 64, MoE in blocks 1 and 3, 16 patches, head with weights so that logits are not all 0."""
    model = vismoe.create_model(SPARSE, **{"num_classes": 5, "weight_init": ""} | overrides)
    return model.eval()


def images(count=2, channels=3, side=8):
    return torch.randn(count, channels, side, side)


def test_dense_preset_is_timms_model():
    """With the same weights a dense preset of timm's shape gives timm's logits, bit for bit, under timm's names."""
    shape = {"depth": 2, "img_size": 32, "num_classes": 7}
    theirs = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    ours = vismoe.create_model("vmoe_tiny_patch16_224_dense", **shape).eval()
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected
    ours.load_state_dict(theirs.state_dict())
    x = images(side=32)
    assert torch.equal(ours(x), theirs(x))


def test_equal_experts_with_unit_weights_are_the_dense_mlp():
    """Where all experts are the dense MLP and weigh 1, the sparse network is timm's: the trunk around them is its."""
    model, twin = sparse(combine="unit"), vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=5).eval()
    state = {name: value for name, value in model.state_dict().items() if ".mlp.experts" not in name}
    twin.load_state_dict({name: value for name, value in state.items() if "router" not in name}, strict=False)
    with torch.no_grad():
        for block, dense in zip(model.blocks, twin.blocks, strict=True):
            if isinstance(block.mlp, MoE):
                for stacked, linear in ((block.mlp.experts.up, dense.mlp.fc1), (block.mlp.experts.down, dense.mlp.fc2)):
                    stacked.weight.copy_(linear.weight.expand_as(stacked.weight))
                    stacked.bias.copy_(linear.bias.expand_as(stacked.bias))
    x = images()
    torch.testing.assert_close(model(x), twin(x))


def test_forward_is_features_then_head():
    """`forward_features` gives normalised tokens, `forward_head` pools the class token and classifies."""
    model, x = sparse(), images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 17, 64)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 0])
    assert torch.equal(model(x), model.head(tokens[:, 0]))


def test_forward_intermediates():
    """Each block's output, as a hook sees it, in NCHW or NLC, with and without the final norm."""
    model, x = sparse(), images()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    final, maps = model.forward_intermediates(x)
    assert len(maps) == 4
    for block_output, features in zip(seen, maps, strict=True):
        assert torch.equal(features, block_output[:, 1:].transpose(1, 2).reshape(2, 64, 4, 4))
    assert torch.equal(final, model.norm(seen[-1]))
    (tokens,) = model.forward_intermediates(x, indices=[1], norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(tokens, model.norm(seen[1])[:, 1:])
    (cut,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(cut, maps[1])


@pytest.mark.parametrize("name", [SPARSE, "vmoe_b16_last2_e8"])
@pytest.mark.parametrize(("indices", "blocks"), [(None, [1, 2, 3]), ((0, 2), [0, 2])])
def test_features_only(name, indices, blocks):
    """`features_only=True` gives the maps of the blocks asked for, by default the last three, with their channels."""
    shape = {"embed_dim": 64, "depth": 4, "num_heads": 4, "img_size": 8, "patch_size": 2, "num_experts": 3}
    chosen = {} if indices is None else {"out_indices": indices}
    torch.manual_seed(1)
    backbone = timm.create_model(name, features_only=True, **chosen, **shape).eval()
    torch.manual_seed(1)
    whole = timm.create_model(name, **shape).eval()
    x = images()
    with torch.no_grad():
        expected = whole.forward_intermediates(x, intermediates_only=True)
        assert backbone.feature_info.channels() == [64] * len(blocks)
        assert backbone.feature_info.reduction() == [2] * len(blocks)
        for seen, number in zip(backbone(x), blocks, strict=True):
            assert torch.equal(seen, expected[number])


@pytest.mark.parametrize("representation", [0, 24, 64])
def test_reset_classifier(representation):
    """A new head has the new number of classes and the old one's input; 0 classes leave features; the rest stays."""
    model, x = sparse(representation_size=representation), images()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (2, representation or 64)
    trunk = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head")}
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(x).shape == (2, 3)
    assert torch.equal(model(x), model.head(features))
    model.reset_classifier(0)
    assert torch.equal(model(x), features)
    model.reset_classifier(6, "avg")
    tokens = model.norm(model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(x)))))
    assert torch.equal(model(x), model.head(model.representation(tokens[:, 1:].mean(1))))
    for name, value in trunk.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_representation_layer_is_a_linear_map_and_tanh():
    """The layer before the head is tanh(W x + b) on the pooled token."""
    model, x = sparse(representation_size=24), images()
    pooled = model.forward_features(x)[:, 0]
    expected = torch.tanh(pooled @ model.representation[0].weight.T + model.representation[0].bias)
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected)


def test_no_classes():
    """`num_classes=0` gives the pooled features."""
    model, x = sparse(num_classes=0), images()
    assert isinstance(model.head, nn.Identity)
    assert torch.equal(model(x), model.forward_features(x)[:, 0])


@pytest.mark.parametrize(
    ("overrides", "image"),
    [
        ({"img_size": 12}, (3, 12, 12)),
        ({"img_size": (8, 4)}, (3, 8, 4)),
        ({"patch_size": 4}, (3, 8, 8)),
        ({"patch_size": (2, 4)}, (3, 8, 8)),
        ({"in_chans": 1}, (1, 8, 8)),
        ({"in_chans": 5}, (5, 8, 8)),
        ({"embed_dim": 48, "num_heads": 2}, (3, 8, 8)),
        ({"depth": 6}, (3, 8, 8)),
        ({"mlp_ratio": 2.0}, (3, 8, 8)),
        ({"class_token": False, "global_pool": "avg"}, (3, 8, 8)),
        ({"reg_tokens": 2}, (3, 8, 8)),
        ({"init_values": 0.1, "qk_norm": True, "qkv_bias": False}, (3, 8, 8)),
        ({"global_pool": "map"}, (3, 8, 8)),
    ],
)
def test_shapes_as_asked(overrides, image):
    """Sizes of image, patch, channels, width, depth and the rest are timm's arguments, for trunk and experts alike."""
    model = sparse(**overrides)
    reference = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 5}
    twin = timm.models.VisionTransformer(**reference | overrides)
    ours, theirs = model.state_dict(), twin.state_dict()
    moe = {number for number, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)}
    assert moe == set(range(1, len(twin.blocks), 2))
    for name, value in theirs.items():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else None
        if block in moe and ".mlp." in name:
            stacked = name.replace("mlp.fc1", "mlp.experts.up").replace("mlp.fc2", "mlp.experts.down")
            assert ours[stacked].shape == (8, *value.shape), name
        else:
            assert ours[name].shape == value.shape, name
    assert model(torch.randn(2, *image)).shape == (2, 5)
    with pytest.raises(AssertionError):
        model(torch.randn(2, image[0], 6, 6))


@pytest.mark.filterwarnings("ignore:.*antialias.*")
def test_set_input_size():
    """Another image size after construction resamples the position embedding as timm's function does."""
    model = sparse()
    before = model.pos_embed.detach().clone()
    model.set_input_size(img_size=(12, 8))
    expected = resample_abs_pos_embed(before, new_size=[6, 4], old_size=[4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed.detach(), expected)
    assert model(torch.randn(2, 3, 12, 8)).shape == (2, 5)


def test_dynamic_img_size():
    """`dynamic_img_size` takes other sizes, and at the native one gives what the fixed network gives."""
    model, fixed, x = sparse(dynamic_img_size=True), sparse(), images()
    fixed.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), fixed(x))
    assert model(torch.randn(2, 3, 12, 8)).shape == (2, 5)


def test_average_pooling():
    """`global_pool="avg"` pools patches alone and normalises after pooling, as timm does."""
    model, x = sparse(global_pool="avg"), images()
    assert isinstance(model.norm, nn.Identity)
    tokens = model.forward_features(x)
    torch.testing.assert_close(model(x), model.head(model.fc_norm(tokens[:, 1:].mean(1))))


def test_grad_checkpointing():
    """Recompute gives the same logits, gradients and balance as without it."""
    torch.manual_seed(0)
    models = [sparse().train(), sparse().train()]
    models[1].load_state_dict(models[0].state_dict())
    models[1].set_grad_checkpointing()
    x = images(8)
    for _ in range(2):
        logits = [model(x) for model in models]
        assert torch.equal(*logits)
        for output in logits:
            output.square().sum().backward()
    for (name, ours), (_, theirs) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), (_, theirs) in zip(*(model.named_buffers() for model in models), strict=True):
        assert torch.equal(ours, theirs), name
    assert models[0].blocks[1].mlp.router.balance_count.sum() == 8 * 17


def test_layer_decay_groups_experts_with_their_block():
    """Under layer decay a block's experts and router learn at the rate of that block's attention."""
    model = sparse()
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    for number, block in enumerate(model.blocks):
        # stem, 4 blocks, norm and head: block n stands 4 − n steps below the last.
        assert {scale[id(parameter)] for parameter in block.parameters()} == {0.5 ** (4 - number)}
    assert scale[id(model.head.weight)] == 1


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_weight_decay_spares_biases(layer_decay):
    """timm's optimiser factory decays weights of experts and router, not their biases and norms: matrices too."""
    model = sparse(scale_mlp_norm=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    experts = model.blocks[1].mlp.experts
    spared = (experts.up.bias, experts.down.bias, *experts.norm.parameters(), model.cls_token, model.pos_embed)
    for parameter in (*spared, model.blocks[0].mlp.fc1.bias, model.norm.weight):
        assert decay[id(parameter)] == 0
    for weight in (experts.up.weight, experts.down.weight, model.blocks[1].mlp.router.weight, model.head.weight):
        assert decay[id(weight)] == 0.05
    assert len(param_groups_weight_decay(model, 0.05)) == 2


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", [SPARSE, "upcycled", "upcycled BEiT"])
def test_weight_decay_of_a_trunk(name, layer_decay, tmp_path):
    """Inside timm's feature extractor the same parameters decay as in the network itself, of one experts' biases and
    norms with it. Layer decay finds no blocks there, and decays by guess."""
    if name == SPARSE:
        options = {"num_classes": 0, "global_pool": ""}
        whole, trunk = sparse(**options), vismoe.create_model(SPARSE, features_only=True, out_indices=(0, 3))
    else:
        parent = "beit_base_patch16_224" if "BEiT" in name else "vit_tiny_patch16_224"
        shape = {"img_size": 32, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
        whole = vismoe.upcycle(vismoe.create_model(f"timm:{parent}", **shape), num_experts=2)
        folder = vismoe.save(whole, tmp_path / "sparse")
        trunk = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(0, 3))

    def decayed(model):
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay)
        decaying = [group["params"] for group in optimizer.param_groups if group["weight_decay"]]
        chosen = {id(parameter) for group in decaying for parameter in group}
        return {name.removeprefix("model.") for name, parameter in model.named_parameters() if id(parameter) in chosen}

    stacked = {name for name, parameter in whole.named_parameters() if ".experts." in name and parameter.ndim == 2}
    shared = {name.removeprefix("model.") for name, _ in trunk.named_parameters()}
    assert len(stacked & shared) == 4
    assert decayed(trunk) == (decayed(whole) - stacked) & shared


def test_drop_rates_reach_experts():
    """`proj_drop_rate` drops, while training only, where timm's MLP does: hidden units and outputs, of experts too."""
    model = sparse(proj_drop_rate=0.5, drop_rate=0.3, attn_drop_rate=0.2, drop_path_rate=0.4)
    experts, dense = model.blocks[1].mlp.experts, model.blocks[0].mlp
    assert experts.dropout == dense.drop1.p == dense.drop2.p == 0.5
    assert (model.head_drop.p, model.blocks[1].attn.attn_drop.p) == (0.3, 0.2)
    assert model.blocks[3].drop_path2.drop_prob == pytest.approx(0.4)
    layer, x = model.blocks[1].mlp, torch.randn(4, 500, 64)
    with torch.no_grad():
        # Ones out of every expert, so that outputs show what was dropped: they are the gate, doubled, or nothing.
        experts.down.weight.zero_()
        experts.down.bias.fill_(1)
        kept = layer(x)
        dropped = layer.train()(x)
    assert (kept != 0).all()
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0], 2 * kept[dropped != 0])


def test_norm_inside_the_mlp_reaches_experts():
    """`scale_mlp_norm` gives experts the inner LayerNorm that timm gives the dense MLPs."""
    model = sparse(scale_mlp_norm=True)
    mlp, experts = model.blocks[0].mlp, model.blocks[1].mlp.experts
    assert experts.norm.weight.shape == (8, *mlp.norm.weight.shape)
    assert experts.norm_eps == mlp.norm.eps
    assert model(images()).shape == (2, 5)


def test_logits_only():
    """Training and evaluation both return a plain tensor of logits."""
    model = sparse()
    for mode in (True, False):
        assert type(model.train(mode)(images())) is torch.Tensor
