"""pytest tests/vit/test_presets.py"""

import itertools
import re

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import vismoe
from vismoe.moe import ROUTERS, MoE, SigmoidRouter
from vismoe.vit import PRESETS, cost, dense_twin
from vismoe.vit.presets import SIZES

# Riquelme et al. 2021, tables 2 and 8: millions of parameters with the 18,291 classes of JFT-300M.
PUBLISHED_MILLIONS = {
    "vmoe_s32_dense": 36.5,
    "vmoe_s32_every2_e32": 296.9,
    "vmoe_b16_dense": 100.5,
    "vmoe_b16_every2_e32": 979,
    "vmoe_l16_dense": 323,
    "vmoe_l16_every2_e32": 3446,
    "vmoe_h14_dense": 656,
    "vmoe_h14_last5_e32": 2689,
    "vmoe_15b_every2_e32": 14700,
}
# timm's names and (width, depth, heads) of the shapes that presets share with it.
TIMM_SHAPES = {
    "tiny_patch16_224": "vit_tiny_patch16_224",
    "small_patch16_224": "vit_small_patch16_224",
    "base_patch16_224": "vit_base_patch16_224",
}


def on_meta(name, **overrides):
    with torch.device("meta"):
        return vismoe.create_model(name, **overrides)


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_published_totals(name, millions):
    """The paper's presets have the paper's numbers of parameters, within 1.5 %."""
    model = on_meta(name, num_classes=18291)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total / 1e6 == pytest.approx(millions, rel=0.015)


def test_every_name_follows_the_scheme():
    """A name says trunk, placement and number of experts, and the network is what its name says."""
    scheme = re.compile(
        r"vmoe_(?P<size>.+?)_(dense|(?P<placement>every|last)(?P<n>\d+)_e(?P<experts>\d+)(?P<fine>_fine)?)"
    )
    for name, preset in PRESETS.items():
        match = scheme.fullmatch(name)
        assert match, name
        assert match["size"] in SIZES, name
        assert name == preset.name
        moe = preset.arguments.get("moe")
        if moe is None:
            assert match["placement"] is None, name
        else:
            assert moe["moe_layers"] == f"{match['placement']}-{match['n']}", name
            assert moe["num_experts"] == int(match["experts"]), name
            assert bool(match["fine"]) == (moe.get("router") == "sigmoid"), name


def test_every_sparse_preset_has_its_dense_twin():
    """The twin is in the table and differs in nothing but the experts."""
    for name, preset in PRESETS.items():
        twin = PRESETS[dense_twin(name)]
        trunk = {key: value for key, value in preset.arguments.items() if key != "moe"}
        assert twin.arguments == trunk, name
        assert twin.image == preset.image, name


def test_the_names_that_were_promised():
    """Every-2 and Last-2 (Last-5 for H/14) with 8 and 32 experts exist for the paper's sizes and for timm's."""
    promised = {"vmoe_15b_every2_e32", "vmoe_15b_dense"}
    for size in ("s32", "b32", "b16", "l32", "l16", "h14", *TIMM_SHAPES):
        last = "last5" if size == "h14" else "last2"
        promised |= {f"vmoe_{size}_dense"}
        promised |= {f"vmoe_{size}_{place}_e{e}" for place, e in itertools.product(("every2", last), (8, 32))}
    assert promised <= set(PRESETS)


@pytest.mark.parametrize("size", [name for name, size in SIZES.items() if size.paper])
def test_paper_presets_are_the_papers(size):
    """k=2, importance and load losses of 0.005, noise 1, capacity 1.05 in training and none at evaluation, tanh GELU,
    and a representation layer of the trunk's width."""
    name = next(name for name in PRESETS if name.startswith(f"vmoe_{size}_every2"))
    model = on_meta(name)
    router = next(layer.router for layer in model.modules() if isinstance(layer, MoE))
    assert (router.k, router.balance, router.noise_std) == (2, "loss", 1.0)
    assert router.loss_weights == {"importance": 0.005, "load": 0.005}
    assert (router.capacity_factor, router.eval_capacity_factor) == (1.05, "none")
    assert (router.capacity_rounding, router.capacity_multiple_of, router.combine) == ("ceil", 4, "gate")
    assert [type(part).__name__ for part in model.representation] == ["Linear", "Tanh"]
    assert model.representation[0].weight.shape == (model.embed_dim, model.embed_dim)
    x = torch.linspace(-3, 3, 61)
    tanh_form = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    for mlp in (model.blocks[0].mlp.act, model.blocks[1].mlp.experts.activation):
        torch.testing.assert_close(mlp(x), tanh_form)
    assert all(norm.eps == 1e-6 for norm in (model.norm, model.blocks[0].norm1, model.blocks[1].norm2))


@pytest.mark.parametrize(
    ("size", "shape"),
    {
        "s32": (8, 512, 2048, 8, 32),
        "b32": (12, 768, 3072, 12, 32),
        "b16": (12, 768, 3072, 12, 16),
        "l32": (24, 1024, 4096, 16, 32),
        "l16": (24, 1024, 4096, 16, 16),
        "h14": (32, 1280, 5120, 16, 14),
        "15b": (48, 1408, 6400, 16, 14),
    }.items(),
)
def test_paper_trunks(size, shape):
    """Depth, width, MLP width, heads and patch of each trunk."""
    model = on_meta(f"vmoe_{size}_dense")
    block = model.blocks[0]
    seen = (len(model.blocks), model.embed_dim, block.mlp.fc1.out_features, block.attn.num_heads)
    assert (*seen, model.patch_embed.patch_size[0]) == shape


@pytest.mark.parametrize(("size", "twin"), TIMM_SHAPES.items())
def test_timm_shapes_cost_what_timms_models_cost(size, twin):
    """timm's shapes are balanced without losses or noise, one expert a token, and drop nothing; the trunk is timm's."""
    model = on_meta(f"vmoe_{size}_last2_e8")
    for layer in (module for module in model.modules() if isinstance(module, MoE)):
        router = layer.router
        assert (router.k, router.balance, router.noise_std, router.loss_weights) == (1, "bias", 0.0, {})
        assert (router.capacity_factor, router.eval_capacity_factor) == ("none", "none")
        assert layer.group_size == "none"
    with torch.device("meta"):
        theirs = timm.create_model(twin)
    assert isinstance(theirs, VisionTransformer)
    dense = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    ours = {name: tensor.shape for name, tensor in on_meta(f"vmoe_{size}_dense").state_dict().items()}
    assert ours == dense


@pytest.mark.parametrize("size", ["tiny_patch16_224", "nano_patch4_32"])
def test_fine_grained_presets_cost_what_their_twins_do(size):
    """Three of 32 experts and one that is shared, a quarter of the MLP's width each: the dense multiplications but for
    the routers, more parameters; weights of a token's experts sum to 1."""
    name = f"vmoe_{size}_every2_e32_fine"
    model, dense = on_meta(name), on_meta(dense_twin(name))
    side = PRESETS[name].image
    routers = [layer.router for layer in model.modules() if isinstance(layer, MoE)]
    tokens = dense.patch_embed.num_patches + dense.num_prefix_tokens
    added = len(routers) * tokens * dense.embed_dim * 32
    costs = [cost(network, (3, side, side)).macs for network in (model, dense)]
    assert costs[0] == costs[1] + added
    mlp, sparse = dense.blocks[1].mlp, model.blocks[1].mlp
    width = mlp.fc1.out_features // 4
    assert (sparse.shared.hidden_dim, sparse.experts.hidden_dim, sparse.experts.num_experts) == (width, width, 32)
    assert {(router.k, router.combine, type(router)) for router in routers} == {(3, "renormalized", SigmoidRouter)}


def test_a_new_shared_mlp_is_drawn_as_the_twins():
    """Its weights have the bounds of the trunk's scheme for its own width, its biases are tiny."""
    torch.manual_seed(0)
    shared = vismoe.create_model("vmoe_nano_patch4_32_every2_e32_fine").blocks[1].mlp.shared
    bound = (6 / (128 + 128)) ** 0.5
    for linear in (shared.up, shared.down):
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert 0 < linear.bias.abs().max() < 1e-5


def options(router):
    return {name: value for name, value in vars(router).items() if not name.startswith("_")}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("preset", ["vmoe_s32_last2_e8", "vmoe_tiny_patch16_224_every2_e32_fine"])
def test_another_router_is_one_argument_away(preset, router):
    """It is what the bare layer's is by default, with the preset's experts a token where it chooses these, and with
    options that are given beside it."""
    given = {"soft": {"slots_per_expert": 3}, "expert-choice": {"capacity_factor": 2.0}}.get(router, {})
    own = PRESETS[preset].arguments["moe"]
    model = on_meta(preset, router=router, **given)
    found = next(layer.router for layer in model.modules() if isinstance(layer, MoE))
    assert type(found) is ROUTERS[router]
    if own.get("router", "top-k") != router:
        k = {"k": own["experts_per_token"]} if hasattr(found, "k") else {}
        assert options(found) == options(ROUTERS[router](found.dim, found.num_experts, **k, **given))


def test_options_of_another_router_are_refused():
    """What the caller said and the router has not is no preset's to leave behind."""
    with pytest.raises(ValueError, match="experts_per_token=2: no option of router='soft'"):
        vismoe.create_model("vmoe_tiny_patch16_224_every2_e8", router="soft", experts_per_token=2)


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if re.search("pico|nano", name)))
def test_small_presets_run(name):
    """The CPU-sized presets take the images that their names say."""
    model = vismoe.create_model(name, num_classes=3).eval()
    side = int(name.split("_")[3])
    with torch.no_grad():
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 3)
