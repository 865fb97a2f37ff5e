"""pytest tests/vit/test_upcycle.py: a sparse model starts as its dense parent, then its experts part."""

import copy
import itertools

import pytest
import timm
import torch
import torchvision
from torch import nn

import vismoe
from vismoe.moe import LowRankExperts, MoE, loop, read_mlp, register_mlp, structure_of
from vismoe.vit import make_sparse
from vismoe.vit.conversion.places import find_mlps

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
TIMM = {
    "vit_tiny_patch16_224": 32,
    "deit3_small_patch16_224": 32,
    "beitv2_base_patch16_224": 32,
    "vit_small_patch14_reg4_dinov2": 28,  # LayerScale, registers
    "vit_giant_patch14_dinov2": 28,  # packed SwiGLU
    "vit_base_patch16_siglip_224": 32,  # another MLP in its attention pooling
    "eva02_tiny_patch14_224": 28,  # packed SwiGLU
    "eva02_large_patch14_224": 28,  # SwiGLU with a norm
    "vit_small_patch16_dinov3": 32,
    "vmoe_tiny_patch16_224_dense": 32,
}
WAYS = [{"k": 1}, {"k": 2}, {"experts": "low-rank", "rank": 4}, {"moe_layers": "every-2", "num_experts": 3}]


def randomised(model: nn.Module) -> nn.Module:
    """The model with every parameter drawn, so that none hides by being 0 or 1."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def parent_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name == "torchvision":
        model: nn.Module = torchvision.models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=5)
        return randomised(model), torch.randn(3, 3, 32, 32)
    model = timm.create_model(name, img_size=TIMM[name], **SMALL)
    return randomised(model), torch.randn(3, 3, TIMM[name], TIMM[name])


@pytest.fixture(scope="module")
def plain():
    return parent_of("vit_tiny_patch16_224")


@pytest.mark.parametrize("name", [*TIMM, "torchvision"])
def test_it_starts_as_its_parent(name):
    """Outputs within 1e-5, whatever the MLPs look like; the parent itself stays dense."""
    parent, images = parent_of(name)
    with torch.inference_mode():
        expected = parent(images)
        assert expected.std() > 1e-2
        for way in WAYS:
            sparse = vismoe.upcycle(parent, **way)
            assert sum(isinstance(module, MoE) for module in sparse.modules()) == 2
            torch.testing.assert_close(sparse(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not any(isinstance(module, MoE) for module in parent.modules())


@pytest.mark.parametrize("router", ["hash", "random"])
@pytest.mark.parametrize("way", [{}, {"k": 2}, {"k": 2, "experts": "low-rank", "rank": 4}, {"shared": True}])
def test_routers_that_learn_nothing_start_as_the_parent(plain, router, way, recwarn):
    """Copies whose mean is taken are the MLP, whoever chooses them."""
    parent, images = plain
    sparse = vismoe.upcycle(parent, router=router, **way)
    assert not recwarn.list
    assert type(sparse.blocks[3].mlp.router) is vismoe.moe.ROUTERS[router]
    for mode in (True, False):
        with torch.inference_mode():
            torch.testing.assert_close(sparse.train(mode)(images), parent(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "way", [{"split": 2}, {"split": 4}, {"shared": True}, {"shared": True, "expert_hidden_dim": 5}]
)
def test_parts_make_up_the_parent_and_shared_experts_keep_it(plain, way):
    """Split experts are narrower and k of them make up the MLP; beside a shared one new experts add nothing yet."""
    parent, images = plain
    sparse = vismoe.upcycle(parent, **way)
    layer = sparse.blocks[3].mlp
    width = parent.blocks[3].mlp.fc1.out_features
    expected = way.get("expert_hidden_dim", width // way.get("split", 4))
    assert (layer.experts.hidden_dim, layer.router.k) == (expected, way.get("split", 1))
    with torch.inference_mode():
        torch.testing.assert_close(sparse(images), parent(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", [*WAYS, {"split": 2}, {"shared": True}])
def test_router_and_experts_part_within_two_steps(way):
    """What was equal in all experts differs after two steps in those that had tokens; routers have moved where experts
    share a token, and are as they were drawn where each has its own."""
    # With the class token's output alone patches of the last block would have no gradient.
    parent = timm.create_model("vit_tiny_patch16_224", img_size=32, global_pool="avg", **SMALL)
    sparse = vismoe.upcycle(randomised(parent), **way).train()
    before = copy.deepcopy(sparse)
    images = torch.randn(16, 3, 32, 32)
    optimizer = torch.optim.SGD([p for p in sparse.parameters() if p.requires_grad], lr=0.05)
    with vismoe.record(sparse) as routing:
        for _ in range(2):
            nn.functional.cross_entropy(sparse(images), torch.arange(16) % 5).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, calls in routing.layers.items():
        layer, used = sparse.get_submodule(name), sum(call.load for call in calls)
        stayed = torch.equal(layer.router.weight, before.get_submodule(name).router.weight)
        assert stayed == (layer.router.k == 1)
        experts = [layer.experts.expert(number).down.weight for number in used.nonzero()[:, 0].tolist()]
        assert len(experts) > 1
        assert all(not torch.equal(one, other) for one, other in itertools.combinations(experts, 2))


def test_low_rank_experts_are_the_mlp_and_a_difference():
    """Against plain algebra: each expert is the MLP with B·A added to its weights; the MLP itself never moves."""
    torch.manual_seed(0)
    mlp = timm.layers.SwiGLU(8, 12, norm_layer=nn.LayerNorm, bias=True)
    experts = LowRankExperts(mlp, 3, rank=2)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, own = torch.randn(5, 8), dict(experts.mlp.named_parameters())
    layer = vismoe.MoE(vismoe.TopKRouter(8, 3, k=1, combine="unit"), experts, backend=loop)
    with vismoe.record(layer) as routing:
        y = layer(x)
    chosen = routing.layers[""][0].gates[0].argmax(-1)
    for row, number in enumerate(chosen.tolist()):
        weight = {part: own[f"{part}.weight"] + getattr(experts, part).of(number) for part in ("up", "gate", "down")}

        def linear(part, v, weight=weight):
            return v @ weight[part].T + own[f"{part}.bias"]

        hidden = nn.functional.silu(linear("gate", x[row])) * linear("up", x[row])
        hidden = nn.functional.layer_norm(hidden, (12,), own["norm.weight"], own["norm.bias"], experts.mlp.norm_eps)
        torch.testing.assert_close(y[row], linear("down", hidden), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(experts.expert(number)(x[row]), y[row], rtol=1e-4, atol=1e-5)
    y.sum().backward()
    assert all(parameter.grad is None for parameter in experts.mlp.parameters())
    assert all(parameter.grad is not None for parameter in experts.down.parameters())


def test_a_setting_that_forbids_equality_says_so(plain):
    """Raw gates, capacities, noise on the copies."""
    for way in ({"combine": "gate"}, {"capacity_factor": 1.0}, {"perturb": 0.1}):
        with pytest.warns(UserWarning, match=f"does not start as its parent, because of {next(iter(way))}"):
            sparse = vismoe.upcycle(plain[0], **way)
    first, *others = [sparse.blocks[3].mlp.experts.expert(number).up.weight for number in range(8)]
    own = plain[0].blocks[3].mlp.fc1.weight
    assert torch.equal(first, own)
    for other in others:
        assert float(((other - own).std() / own.std()).detach()) == pytest.approx(0.1, rel=0.2)


def test_same_seed_same_model(plain):
    """And the caller's random numbers are untouched."""
    state = torch.get_rng_state()
    first, second, third = (vismoe.upcycle(plain[0], seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.3.mlp.router.weight"], third["blocks.3.mlp.router.weight"])


def test_in_place(plain):
    """On request the model itself becomes sparse."""
    model = copy.deepcopy(plain[0])
    assert vismoe.upcycle(model, inplace=True) is model
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp is sparse already"):
        vismoe.upcycle(model)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.act = nn.Linear(8, 20), nn.Linear(20, 8), nn.Tanh()

    def forward(self, x):
        return self.narrow(self.act(self.wide(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn = Odd()

    def forward(self, x):
        return x + self.ffn(x)


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x):
        for block in self.stages:
            x = block(x)
        return x


def test_an_mlp_that_is_not_known_is_named_and_can_be_made_known(monkeypatch):
    """The error names the module and says what to type; what it says works."""
    monkeypatch.setattr("vismoe.moe.experts.structures.STRUCTURES", dict(vismoe.moe.experts.structures.STRUCTURES))
    trunk, x = Trunk(), torch.randn(2, 3, 8)
    with pytest.raises(
        ValueError, match=r"stages\.0 \(Block\).*\(ffn: Odd\); register its class with vismoe.register_mlp\("
    ):
        vismoe.upcycle(trunk)
    register_mlp(Odd, vismoe.MLPStructure(up="wide", down="thin", activation="act"))
    with pytest.raises(ValueError, match="Odd has no thin, the down of its structure"):
        vismoe.upcycle(trunk)
    register_mlp(Odd, vismoe.MLPStructure(up="wide", down="narrow", activation="act"))
    torch.testing.assert_close(vismoe.upcycle(trunk)(x), trunk(x))


def test_several_lists_of_blocks_are_told_apart():
    """A model with two towers: which one is to be said."""
    towers = nn.ModuleDict({"left": parent_of("vit_tiny_patch16_224")[0], "right": parent_of("torchvision")[0]})
    with pytest.raises(ValueError, match=r"'left.blocks' \(4\), 'right.encoder.layers' \(4\)"):
        vismoe.upcycle(towers)
    with pytest.raises(ValueError, match="name one with block_list=: 'blocks'"):
        vismoe.upcycle(timm.create_model("cait_xxs24_224", img_size=32, embed_dim=32, depth=4, num_heads=2))
    sparse = vismoe.upcycle(towers, block_list="right.encoder.layers")
    assert [name for name, module in sparse.named_modules() if isinstance(module, MoE)] == [
        "right.encoder.layers.encoder_layer_1.mlp",
        "right.encoder.layers.encoder_layer_3.mlp",
    ]
    with pytest.raises(ValueError, match="block_list='middle': there is no such list of blocks"):
        vismoe.upcycle(towers, block_list="middle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moe_layers": "last-9"}, "^moe_layers='last-9'"),
        ({"split": 3}, "split=3, k=3, num_experts=8"),
        ({"split": 2, "k": 1}, "split=2, k=1"),
        ({"split": 2, "experts": "low-rank"}, "split=2"),
        ({"perturb": -1.0}, "perturb=-1.0"),
        ({"perturb": 0.1, "shared": True}, "perturb=0.1"),
        ({"experts": "low-rank", "shared": True}, "keep the whole MLP"),
        ({"experts": "low-rank", "rank": 0}, "^rank=0: accepted are 1 to"),
        ({"rank": 8}, 'rank=8: accepted only with experts="low-rank"'),
        ({"shared": True, "rank": 16}, 'rank=16: accepted only with experts="low-rank"'),
        ({"num_expert": 3}, "no option num_expert"),
        ({"k": 9}, "k=9"),
        ({"k": 0}, "k=0 experts per token"),
        ({"k": 0, "split": 2}, "split=2, k=0"),
        ({"perturb": float("nan")}, "perturb=nan: accepted are finite numbers"),
        ({"perturb": float("inf")}, "perturb=inf: accepted are finite numbers"),
        ({"seed": -1}, "seed=-1: accepted are"),
        ({"seed": 2**64}, "seed=18446744073709551616: accepted are"),
        ({"noise_std": float("nan")}, "noise_std=nan: accepted are"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan: accepted are"),
        ({"expert_hidden_dim": 10}, "expert_hidden_dim=10: copies of the parent's MLP have its width"),
        ({"expert_hidden_dim": 10, "split": 2}, "split= cuts copies into narrower experts"),
        ({"shared": True, "shared_hidden_dim": 4}, "shared_hidden_dim=4: upcycling shares the parent's own MLP"),
        ({"shared_hidden_dim": 4}, "shared_hidden_dim=4, shared=False: accepted are widths ≥ 0, and with shared=True"),
        ({"router": "hash", "split": 2}, "split=2 with router='hash': a token must go to all experts of one copy"),
        ({"router": "random", "split": 2}, "use whole copies"),
        ({"router": "hash", "combine": "unit"}, "combine='unit': no option of router='hash'"),
    ],
)
def test_options_that_cannot_be_followed(plain, options, message):
    with pytest.raises(ValueError, match=message):
        vismoe.upcycle(plain[0], **options)


def test_one_expert_is_said(plain):
    with pytest.warns(UserWarning, match="num_experts=1: all tokens go to the same expert"):
        vismoe.upcycle(plain[0], num_experts=1)


def test_read_mlp_gives_what_it_read():
    """Every known structure that timm and torchvision have: the copy computes what the module does."""
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    layers = timm.layers
    modules = [
        layers.Mlp(8, 12, norm_layer=nn.LayerNorm, bias=(True, False)),
        layers.GluMlp(8, 12, act_layer=nn.SiLU, gate_last=True),
        layers.GluMlp(8, 12, act_layer=nn.SiLU, gate_last=False, norm_layer=nn.LayerNorm),
        layers.SwiGLU(8, 12, bias=False),
        torchvision.ops.MLP(8, [12, 8], activation_layer=nn.GELU),
    ]
    modules[-1].__class__ = torchvision.models.vision_transformer.MLPBlock
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        assert structure_of(module) is not None
        mlp = read_mlp(module)
        torch.testing.assert_close(mlp(x), module(x))
    with pytest.raises(ValueError, match="Linear is not an MLP of a known class"):
        read_mlp(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="accepted is one rate"):
        read_mlp(layers.Mlp(8, 12, drop=(0.1, 0.2)))


def test_make_sparse_on_meta():
    """A configuration alone builds the network, without its weights."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", **SMALL)
        make_sparse(model, vismoe.vit.MoEConfig("last-1", 4))
    assert model.blocks[3].mlp.experts.up.weight.shape == (4, 128, 32)
    assert model.blocks[3].mlp.experts.up.weight.is_meta
    assert find_mlps(timm.create_model("vit_tiny_patch16_224", **SMALL)) == [f"blocks.{n}.mlp" for n in range(4)]
