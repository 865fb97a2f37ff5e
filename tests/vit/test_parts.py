"""Parts of networks that timm does not have: position embeddings that are computed, norms by scale, how weights begin.

pytest tests/vit/test_parts.py
"""

import math

import pytest
import torch

import vismoe
from vismoe.moe import MoE
from vismoe.vit.positions import sincos2d

SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def sparse(**overrides):
    return vismoe.create_model("vmoe_b16_last2_e8", **SHAPE | {"moe_layers": [1], "num_experts": 4} | overrides)


@pytest.mark.parametrize(("height", "width", "dim"), [(2, 3, 8), (5, 2, 16), (14, 14, 192)])
@pytest.mark.parametrize("temperature", [10_000.0, 20.0])
def test_sincos2d(height, width, dim, temperature):
    """Feature by feature: sin and cos of column, then of row, times temperature^(−j / (d/4 − 1))."""
    found = sincos2d(height, width, dim, temperature)
    assert found.shape == (height * width, dim)
    quarter = dim // 4
    for y, x in ((0, 0), (height - 1, 0), (0, width - 1), (height - 1, width - 1), (height // 2, width // 2)):
        for j in range(quarter):
            frequency = temperature ** (-j / (quarter - 1))
            expected = [f(place * frequency) for place in (x, y) for f in (math.sin, math.cos)]
            ours = found[y * width + x, j::quarter].tolist()
            assert ours == pytest.approx(expected, abs=2e-6)


def test_sincos2d_is_added_to_patches_alone():
    """The class token has no place; nothing of the embedding is trained or written; other sizes of image are exact."""
    model = sparse(pos_embed="sincos2d", dynamic_img_size=True, pos_drop_rate=0.5).eval()
    assert not [name for name in model.state_dict() if "pos" in name]
    for height, width in ((8, 8), (12, 20)):
        x = torch.randn(2, 3, height, width)
        patches = model.patch_embed.proj(x).flatten(2).mT
        expected = patches + sincos2d(height // 4, width // 4, 16)
        tokens = model._pos_embed(model.patch_embed(x))
        torch.testing.assert_close(tokens, torch.cat([model.cls_token.expand(2, 1, -1), expected], 1))
    fixed = sparse(pos_embed="sincos2d").eval()
    fixed.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fixed(x), model(x))
    fixed.set_input_size(img_size=(12, 8))
    x = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(fixed(x), model(x))


def test_sincos2d_under_autocast():
    """Places are not rounded before they are added."""
    model = sparse(pos_embed="sincos2d", class_token=False, global_pool="avg").eval()
    model.patch_embed.proj.weight.data.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model._pos_embed(model.patch_embed(torch.randn(1, 3, 8, 8)))
    assert torch.equal(tokens, sincos2d(2, 2, 16).bfloat16()[None].to(tokens.dtype))


@pytest.mark.parametrize("pool", ["token", "map"])
def test_norms_by_scale(pool):
    """`qk_norm="scale"`: norms of queries and keys of each head without a shift, in blocks and in the MAP head."""
    model = sparse(qk_norm="scale", global_pool=pool, class_token=pool == "token")
    attentions = [block.attn for block in model.blocks] + ([model.attn_pool] if pool == "map" else [])
    for attention in attentions:
        for norm in (attention.q_norm, attention.k_norm):
            assert norm.weight.shape == (8,)
            assert (norm.bias, norm.eps) == (None, 1e-6)
    attention = model.blocks[0].attn
    torch.nn.init.normal_(attention.q_norm.weight)
    x = torch.randn(2, 5, 16)
    query, key, value = attention.qkv(x).view(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)

    def normed(part, scale):
        centred = part - part.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    query, key = normed(query, attention.q_norm.weight), normed(key, attention.k_norm.weight)
    mixed = (query @ key.mT / math.sqrt(8)).softmax(-1) @ value
    torch.testing.assert_close(attention(x), attention.proj(mixed.transpose(1, 2).reshape(2, 5, 16)))


@pytest.mark.parametrize("representation_size", [0, 12])
def test_bias_of_the_head(representation_size):
    """Each bias of the head begins as asked for: when built, drawn anew, and where a new head is put on."""
    model = sparse(head_bias_init=-7.5, representation_size=representation_size)
    for classes in (3, 5):
        if classes == 5:
            model.reset_classifier(5)
        assert torch.equal(model.head.bias, torch.full((classes,), -7.5))
        torch.nn.init.zeros_(model.head.bias)
        model.init_weights()
        assert torch.equal(model.head.bias, torch.full((classes,), -7.5))
    model.reset_classifier(0)
    model.init_weights()


@pytest.mark.parametrize("mode", ["jax", ""])
@pytest.mark.parametrize("drawn", ["alike", "apart"])
def test_how_experts_are_drawn(drawn, mode):
    """ "alike": all experts of a layer are one, drawn as any; layers and routers' rows differ. Drawn anew, too."""
    model = sparse(expert_init=drawn, moe_layers=[0, 1], weight_init=mode)
    for _ in range(2):
        first, second = (block.mlp.experts for block in model.blocks)
        for stacked in (first.up.weight, first.down.weight):
            assert (stacked == stacked[:1]).all() == (drawn == "alike")
        assert not torch.equal(first.up.weight, second.up.weight)
        rows = model.blocks[0].mlp.router.weight
        assert len(rows.unique(dim=0)) == 4
        bound = math.sqrt(6 / (16 + 64)) if mode == "jax" else 2.0
        assert bound / 2 < first.up.weight.abs().max() < bound or mode == ""
        before = first.up.weight.detach().clone()
        model.init_weights()
        assert not torch.equal(before, first.up.weight)


def test_one_of_experts_that_are_alike_is_as_any_other():
    """The random numbers that are drawn are those of a dense MLP: its spread is the scheme's."""
    model = sparse(expert_init="alike", embed_dim=64, num_heads=4)
    weight = model.blocks[1].mlp.experts.down.weight[3]
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 256)), rel=0.05)


@pytest.mark.parametrize("mode", ["jax", "jax_nlhb", "moco", ""])
def test_how_routers_are_drawn(mode):
    """Under every scheme a router begins as the reference's: normal with variance 1/d, cut off at two deviations of
    what was cut (LeCun), so that logits of normalised tokens have variance 1."""
    model = sparse(embed_dim=128, num_heads=4, num_experts=64, weight_init=mode)
    for _ in range(2):
        weight = model.blocks[1].mlp.router.weight
        assert weight.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.05)
        assert weight.abs().max().item() <= 2 / (0.87962566 * math.sqrt(128)) + 1e-6
        torch.nn.init.zeros_(weight)
        model.init_weights()


def test_dropout_of_experts():
    """`expert_dropout` is that of experts alone; "same", the default, the MLPs'."""
    for given, expected in ((0.5, 0.5), (0.0, 0.0), ("same", 0.1)):
        model = sparse(expert_dropout=given, proj_drop_rate=0.1)
        assert model.blocks[1].mlp.experts.dropout == expected
        assert model.blocks[0].mlp.drop1.p == 0.1


PARTS = {
    "pos_embed": "sincos2d",
    "pos_embed_temperature": 20.0,
    "qk_norm": "scale",
    "global_pool": "map",
    "class_token": False,
    "head_bias_init": -2.0,
    "expert_init": "alike",
    "expert_dropout": 0.25,
}


def test_on_meta_and_in_a_folder(tmp_path):
    """All parts together: built on meta they have the same names and shapes, and a model folder keeps them."""
    model = sparse(**PARTS).eval()
    with torch.device("meta"):
        meta = sparse(**PARTS)
    assert {name: value.shape for name, value in meta.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert all(value.is_meta for value in (*meta.parameters(), *meta.buffers()))
    real = meta.to_empty(device="cpu")
    real.init_weights()
    assert (real.head.bias == -2.0).all()
    experts = real.blocks[1].mlp.experts.up.weight
    assert torch.equal(experts[0], experts[3])
    torch.nn.init.normal_(model.head.weight)
    vismoe.save(model, tmp_path / "model")
    opened = vismoe.load(tmp_path / "model")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(opened(x), model(x))
    assert opened.moe == model.moe
    assert opened.sincos_temperature == 20.0
    opened.init_weights()
    assert (opened.head.bias == -2.0).all()


def test_upcycled_experts_keep_their_dropout():
    """`upcycle` takes the fields of experts as it does others: of new experts beside a shared MLP both have a say."""
    parent = vismoe.create_model("vmoe_b16_dense", **SHAPE)
    model = vismoe.upcycle(parent, 4, [1], shared=True, expert_init="alike", expert_dropout=0.5)
    experts = model.blocks[1].mlp.experts
    assert experts.dropout == 0.5
    assert (experts.up.weight == experts.up.weight[:1]).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pos_embed": "rope"}, r"pos_embed='rope': accepted are \"learn\", \"none\" and \"sincos2d\""),
        ({"pos_embed": "sincos2d", "embed_dim": 18}, r"^embed_dim=18: .* multiples of 4 that are at least 8"),
        ({"pos_embed": "sincos2d", "embed_dim": 4}, r"^embed_dim=4: "),
        ({"pos_embed": "sincos2d", "pos_embed_temperature": 0.0}, r"^pos_embed_temperature=0\.0: "),
        ({"expert_dropout": 1.5}, r"dropout in 0…1, but .*dropout=1\.5"),
    ],
)
def test_what_does_not_fit_is_said(overrides, message):
    """A ValueError says what was given and what is accepted."""
    with pytest.raises(ValueError, match=message):
        sparse(**overrides)


@pytest.mark.parametrize("option", [{"expert_init": "alike"}, {"expert_dropout": 0.5}])
def test_low_rank_experts_have_no_such_part(option):
    """They share the parent's MLP: nothing of theirs is drawn so, or dropped."""
    parent = vismoe.create_model("vmoe_b16_dense", **SHAPE)
    with pytest.raises(ValueError, match=r'experts="low-rank" keep the whole MLP: .*expert_init'):
        vismoe.upcycle(parent, 4, [1], experts="low-rank", rank=2, **option)


def test_parameters_that_others_know():
    """Names of parts that timm has are timm's."""
    model = sparse(**PARTS)
    names = {name for name in model.state_dict() if "mlp.experts" not in name and "router" not in name}
    twin = vismoe.create_model("timm:vit_base_patch16_224", **SHAPE | {"global_pool": "map", "class_token": False})
    theirs = {name for name in twin.state_dict() if not name.startswith("blocks.1.mlp")} - {"pos_embed"}
    norms = {f"{at}.{norm}_norm.weight" for at in ("blocks.0.attn", "blocks.1.attn", "attn_pool") for norm in "qk"}
    assert names - {"representation.0.weight", "representation.0.bias"} == theirs | norms
    assert isinstance(model.blocks[1].mlp, MoE)
