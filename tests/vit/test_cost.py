"""pytest tests/vit/test_cost.py"""

import pytest
import timm
import torch

import vismoe
from vismoe.vit import cost

D, H, HEADS, DEPTH, PATCH, SIDE, CLASSES = 24, 56, 3, 4, 4, 16, 7
PATCHES = (SIDE // PATCH) ** 2
TOKENS = PATCHES + 1
TRUNK = {
    "embed_dim": D,
    "mlp_ratio": H / D,
    "num_heads": HEADS,
    "depth": DEPTH,
    "patch_size": PATCH,
    "img_size": SIDE,
    "num_classes": CLASSES,
}
IMAGE = (3, SIDE, SIDE)
MLP = D * H + H + H * D + D


def parameters(sparse=0, experts=0, representation=0):
    """In all, for so many sparse layers of so many experts."""
    stem = 3 * PATCH**2 * D + D + D + TOKENS * D
    attention = D * 3 * D + 3 * D + D * D + D
    norms = 2 * 2 * D
    head = D * representation + representation if representation else 0
    head += (representation or D) * CLASSES + CLASSES
    mlps = (DEPTH - sparse) * MLP + sparse * (experts * MLP + experts * D)
    return stem + DEPTH * (attention + norms) + mlps + 2 * D + head


def multiplications(sparse=0, experts=0, k=1, representation=0):
    """Of matrix products, for one image."""
    stem = PATCHES * 3 * PATCH**2 * D
    attention = TOKENS * D * 3 * D + 2 * TOKENS * TOKENS * D + TOKENS * D * D
    mlp = TOKENS * 2 * D * H
    router = TOKENS * D * experts
    head = D * representation + (representation or D) * CLASSES
    return stem + DEPTH * attention + (DEPTH - sparse) * mlp + sparse * (k * mlp + router) + head


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_dense(device):
    """A dense network's three figures are the textbook formulas', and all its parameters are active."""
    with torch.device(device):
        seen = cost(vismoe.create_model("vmoe_pico_patch2_8_dense", **TRUNK), IMAGE)
    assert seen.parameters == seen.active_parameters == parameters()
    assert seen.macs == multiplications()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("capacity_factor", ["none", 0.5])
def test_sparse(device, k, capacity_factor):
    """A sparse network computes k experts a token, nothing dropped, and its router; k of E experts are active."""
    overrides = {"num_experts": 6, "experts_per_token": k, "capacity_factor": capacity_factor}
    with torch.device(device):
        model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **TRUNK, **overrides)
    seen = cost(model, IMAGE)
    assert seen.parameters == parameters(2, 6)
    assert seen.active_parameters == parameters(2, 6) - 2 * (6 - k) * MLP
    assert seen.macs == multiplications(2, 6, k)


def test_one_expert_a_token_costs_the_dense_mlp_and_a_router():
    """With k=1 the sparse network's multiplications are its dense twin's and the router's alone."""
    with torch.device("meta"):
        sparse = cost(vismoe.create_model("vmoe_tiny_patch16_224_every2_e8"), (3, 224, 224))
        dense = cost(vismoe.create_model("vmoe_tiny_patch16_224_dense"), (3, 224, 224))
    assert sparse.macs - dense.macs == 6 * 197 * 192 * 8


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(
    ("way", "shared", "expert"),
    [
        ({}, 0, MLP),
        ({"experts": "low-rank", "rank": 3}, MLP, 2 * 3 * (D + H)),
        ({"shared": True, "expert_hidden_dim": 10}, MLP, D * 10 + 10 + 10 * D + D),
    ],
    ids=["full", "low-rank", "shared"],
)
def test_active_is_what_a_token_passes_through(way, shared, expert, k):
    """Of an upcycled layer: k of E experts, and whole what stands beside them or what all of them differ from."""
    dense = vismoe.create_model("vmoe_pico_patch2_8_dense", **TRUNK)
    seen = cost(vismoe.upcycle(dense, num_experts=6, moe_layers=[1, 3], k=k, **way), IMAGE)
    trunk = parameters() - 2 * MLP + 2 * 6 * D
    assert seen.parameters == trunk + 2 * (shared + 6 * expert)
    assert seen.active_parameters == trunk + 2 * (shared + k * expert)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_base_patch16_siglip_224", {"global_pool": "map"}), ("cait_xxs24_224", {})],
)
def test_attention_of_a_parameter(name, options):
    """Networks whose queries are parameters (attention pooling, class attention) are counted whether these learn or
    not."""
    model = timm.create_model(name, img_size=32, embed_dim=D, depth=2, num_heads=HEADS, num_classes=CLASSES, **options)
    seen = cost(model, (3, 32, 32))
    assert seen.macs > 0
    assert seen == cost(model.requires_grad_(False), (3, 32, 32))


def test_representation_layer():
    """The layer before the head is counted."""
    model = vismoe.create_model("vmoe_pico_patch2_8_dense", **TRUNK, representation_size=10)
    seen = cost(model, IMAGE)
    assert seen.parameters == parameters(representation=10)
    assert seen.macs == multiplications(representation=10)


def test_counting_leaves_no_trace():
    """Counting a model in training changes neither its mode, nor its balance, nor what it computes."""
    torch.manual_seed(0)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **TRUNK).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, *IMAGE)
    with torch.no_grad():
        expected = model(images)
        cost(model, IMAGE)
        assert torch.equal(model(images), expected)
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
