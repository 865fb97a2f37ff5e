"""pytest tests/vit/test_twins.py"""

import math

import pytest
import torch

import vismoe
from vismoe.moe import MoE

SPARSE, DENSE = "vmoe_pico_patch2_8_every2_e8", "vmoe_pico_patch2_8_dense"
WIDE = {"embed_dim": 192, "num_heads": 3, "depth": 2}


def pair(layers="every-2", **overrides):
    models = []
    for name, moe in ((SPARSE, {"moe_layers": layers, "num_experts": 3}), (DENSE, {})):
        torch.manual_seed(0)
        models.append(vismoe.create_model(name, num_classes=10, **moe, **overrides))
    return models


@pytest.mark.parametrize("mode", ["jax", "jax_nlhb", "", "moco", "reset"])
def test_trunks_are_bit_equal(mode):
    """From one seed, sparse and dense twin have the same trunk, bit for bit, in every scheme of initialisation."""
    sparse, dense = (model.state_dict() for model in pair(weight_init=mode))
    shared = set(sparse) & set(dense)
    assert set(dense) - shared == {f"blocks.{n}.mlp.{p}" for n in (1, 3) for p in PARTS}
    assert all(".mlp.router." in name or ".mlp.experts." in name for name in set(sparse) - shared)
    for name in shared:
        assert torch.equal(sparse[name], dense[name]), name


PARTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")

# width d, hidden h: (bound, standard deviation) of up and down; None: unbounded, or not at all a distribution.
XAVIER = math.sqrt(6 / (192 + 768))
SCHEMES = {
    "jax": (XAVIER, XAVIER / math.sqrt(3), XAVIER, XAVIER / math.sqrt(3)),
    "moco": (XAVIER, XAVIER / math.sqrt(3), XAVIER, XAVIER / math.sqrt(3)),
    # PyTorch's own: uniform within 1/sqrt(fan_in).
    "reset": (192**-0.5, (192 * 3) ** -0.5, 768**-0.5, (768 * 3) ** -0.5),
    # Truncated only at ±2, a hundred standard deviations.
    "": (2.0, 0.02, 2.0, 0.02),
}


@pytest.mark.parametrize("mode", SCHEMES)
@pytest.mark.parametrize("fix_init", [False, True])
def test_each_expert_starts_as_the_dense_mlp_does(mode, fix_init):
    """Each expert's weights are drawn apart from the distribution that the scheme gives a dense MLP."""
    sparse, dense = pair(weight_init=mode, fix_init=fix_init, layers=[0, 1], **WIDE)
    up_bound, up_std, down_bound, down_std = SCHEMES[mode]
    for number, (block, twin) in enumerate(zip(sparse.blocks, dense.blocks, strict=True)):
        scale = 1 / math.sqrt(2 * (number + 1)) if fix_init else 1
        experts = block.mlp.experts
        for weights, dense_weight, bound, std in (
            (experts.up.weight, twin.mlp.fc1.weight, up_bound, up_std),
            (experts.down.weight, twin.mlp.fc2.weight, down_bound * scale, down_std * scale),
        ):
            for weight in (*weights, dense_weight):
                assert weight.abs().max() <= bound * (1 + 1e-6)
                # 147,456 draws: the standard deviation's own error is below 0.2 %.
                assert weight.std().item() == pytest.approx(std, rel=0.01)
                assert abs(weight.mean().item()) < 0.01 * std
            assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(("mode", "std"), [("jax", 1e-6), ("moco", 0.0), ("", 0.0)])
def test_biases_of_experts(mode, std):
    """Expert biases start as the dense MLP's: nearly zero as in the reference, or zero."""
    sparse, dense = pair(weight_init=mode, layers=[0, 1], **WIDE)
    for bias in (sparse.blocks[0].mlp.experts.up.bias, dense.blocks[0].mlp.fc1.bias):
        assert bias.std().item() == pytest.approx(std, rel=0.1)


def test_small_presets_tell_positions_apart():
    """`pos_embed_std` sets the position embedding's standard deviation, of both twins."""
    for model in pair(img_size=32, **WIDE):
        assert model.pos_embed.std().item() == pytest.approx(0.88, rel=0.02)  # a normal truncated at ±2
    for model in pair(img_size=32, pos_embed_std=0.02, **WIDE):
        assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("mode", ["jax", "", "moco", "reset"])
def test_meta_device(mode):
    """Under the meta device nothing is allocated, experts, routers and buffers included."""
    with torch.device("meta"):
        model = vismoe.create_model(SPARSE, weight_init=mode, fix_init=True)
    assert any(isinstance(module, MoE) for module in model.modules())
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("mode", ["jax", "", "moco", "reset"])
@pytest.mark.parametrize("fix_init", [False, True])
def test_init_weights_again(mode, fix_init):
    """timm's `init_weights`, which a model on the meta device is given after `to_empty`, leaves no weight undefined and
    experts distributed as before."""
    with torch.device("meta"):
        model = vismoe.create_model(
            SPARSE, moe_layers=[0, 1], num_experts=3, weight_init=mode, fix_init=fix_init, **WIDE
        )
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
    up_std, down_std = SCHEMES[mode][1::2]
    for number, block in enumerate(model.blocks):
        scale = 1 / math.sqrt(2 * (number + 1)) if fix_init else 1
        assert block.mlp.experts.up.weight.std().item() == pytest.approx(up_std, rel=0.01)
        assert block.mlp.experts.down.weight.std().item() == pytest.approx(down_std * scale, rel=0.01)
        assert not block.mlp.router.balance_bias.any()
        assert not block.mlp.router.balance_count.any()
