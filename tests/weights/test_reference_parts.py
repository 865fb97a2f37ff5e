"""Every part that models of the reference may have: against what the reference computes, written down again, and back.

python -m pytest tests/weights/test_reference_parts.py
"""

import itertools

import numpy as np
import pytest
import torch

import vismoe
from vismoe.weights import from_reference, to_reference
from vismoe.weights.reference.config import _ratio

from .reference_trees import configuration, logits, parameters

# Two images are no multiple of each configuration's groups; where nothing is dropped, groups change no logits.
pytestmark = pytest.mark.filterwarnings("ignore:group_size=.* does not divide:UserWarning")
CLASSIFIERS, POSITIONS = ("token", "gap", "map"), ("learned", "sincos2d", "none")


def parts(classifier, position, qk_norm=False, representation=None, layers=(1,), **more):
    encoder = {"position_emb": {"name": position}, "attention_qk_norm": qk_norm}
    return configuration(
        moe={"layers": list(layers)}, encoder=encoder, classifier=classifier, representation_size=representation, **more
    )


def with_moe(config, **moe):
    """The configuration, its sparse part changed."""
    config["model"]["encoder"]["moe"] |= moe
    return config


def images(height=8, width=8):
    return np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)


def says(model, images):
    with torch.no_grad():
        return model.eval()(torch.tensor(images).permute(0, 3, 1, 2))


def assert_same_tree(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(("classifier", "position"), list(itertools.product(CLASSIFIERS, POSITIONS)))
def test_all_parts_together(classifier, position):
    """Any classifier with any position embedding, with and without qk-norm, representation, sparse layers and head: the
    reference's logits within 1e-5 of what they reach, and its parameters again, bit for bit."""
    for qk_norm, representation, layers in itertools.product((False, True), (None, 6), ((), (1,))):
        config = parts(classifier, position, qk_norm, representation, layers)
        arrays = parameters(config)
        model = from_reference(arrays, config)
        expected = torch.tensor(logits(config, arrays, images()), dtype=torch.float32)
        torch.testing.assert_close(says(model, images()), expected, rtol=1e-5, atol=1e-5)
        assert_same_tree(to_reference(model), arrays)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_no_classes(classifier):
    """`num_classes` None: features, of the representation layer or pooled, and no head in the tree."""
    for representation in (None, 6):
        config = parts(classifier, "learned", True, representation, num_classes=None)
        arrays = parameters(config)
        model = from_reference(arrays, config)
        expected = torch.tensor(logits(config, arrays, images()), dtype=torch.float32)
        torch.testing.assert_close(says(model, images()), expected, rtol=1e-5, atol=1e-5)
        assert_same_tree(to_reference(model), arrays)


@pytest.mark.parametrize(("classifier", "position"), list(itertools.product(CLASSIFIERS, ("sincos2d", "none"))))
def test_any_image_size_without_a_learned_embedding(classifier, position):
    """Where nothing was learned for one size, the model takes any, rectangles too, as the reference does."""
    config = parts(classifier, position)
    arrays = parameters(config)
    model = from_reference(arrays, config)
    for size in ((8, 8), (12, 20), (4, 16)):
        expected = torch.tensor(logits(config, arrays, images(*size)), dtype=torch.float32)
        torch.testing.assert_close(says(model, images(*size)), expected, rtol=1e-5, atol=1e-5)


def test_temperature_of_the_position_embedding():
    """A temperature of its own reaches the embedding; what the reference sets itself (h, w) is of no account."""
    config = parts("gap", "sincos2d")
    config["model"]["encoder"]["position_emb"] |= {"temperature": 50.0, "h": 7, "w": 7}
    arrays = parameters(config)
    expected = torch.tensor(logits(config, arrays, images()), dtype=torch.float32)
    torch.testing.assert_close(says(from_reference(arrays, config), images()), expected, rtol=1e-5, atol=1e-5)


def test_rectangles_with_a_learned_embedding():
    """The reference does not say how many rows a learned embedding has: a square, unless `image_size` is added."""
    config = parts("gap", "learned")
    arrays = parameters(config)
    place = "Encoder/posembed_input/pos_embedding"
    arrays[place] = np.random.default_rng(2).normal(size=(1, 6, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="6 patches, which is not a square number: add image_size"):
        from_reference(arrays, config)
    for size in ((8, 12), (12, 8)):
        model = from_reference(arrays, config | {"image_size": size})
        expected = torch.tensor(logits(config, arrays, images(*size)), dtype=torch.float32)
        torch.testing.assert_close(says(model, images(*size)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=place):
        from_reference(arrays, config | {"image_size": (8, 8)})


def test_fields_that_say_how_and_not_what():
    """Types, partitions, precisions, the dispatcher's way and the released configurations' `name` change no number."""
    config = parts("map", "sincos2d", True, 6)
    arrays = parameters(config)
    expected = says(from_reference(arrays, config), images())
    dispatcher = {"name": "indices", "capacity_factor": 4.0}
    dispatcher |= {"partition_spec": [["expert"]], "einsum_precision": "high"}
    router = {
        "name": "vmoe.nn.routing.NoisyTopExpertsPerItemRouter",
        "num_selected_experts": 2,
        "dispatcher": dispatcher,
    }
    with_moe(config, router=router, dtype="float32", split_rngs=["params", "dropout"])
    config["model"] |= {"name": "VisionTransformerMoe", "head_kernel_zero_init": False}
    config["model"]["encoder"] |= {"dtype": "float32"}
    assert torch.equal(says(from_reference(arrays, config), images()), expected)


def test_layers_that_are_not_there():
    """As in the reference, a block number beyond the last names nothing: the model is as without it."""
    config = parts("token", "learned", layers=(1, 7))
    arrays = parameters(config)
    assert_same_tree(to_reference(from_reference(arrays, config)), arrays)


def test_experts_of_their_own_kind():
    """`moe` overrides the width and the dropout of the other MLPs, for experts alone; dropout is where the reference
    has it: behind the position embedding too."""
    config = with_moe(parts("token", "learned"), mlp_dim=12, dropout_rate=0.5)
    config["model"]["encoder"] |= {"dropout_rate": 0.1, "attention_dropout_rate": 0.2}
    arrays = parameters(config)
    model = from_reference(arrays, config)
    assert model.training
    dense, experts = model.blocks[0].mlp, model.blocks[1].mlp.experts
    assert (experts.hidden_dim, experts.dropout) == (12, 0.5)
    assert (dense.fc1.out_features, dense.drop1.p, dense.drop2.p) == (16, 0.1, 0.1)
    assert (model.pos_drop.p, model.blocks[0].attn.proj_drop.p, model.blocks[0].attn.attn_drop.p) == (0.1, 0.1, 0.2)
    expected = torch.tensor(logits(config, arrays, images()), dtype=torch.float32)
    torch.testing.assert_close(says(model, images()), expected, rtol=1e-5, atol=1e-5)
    assert_same_tree(to_reference(model), arrays)


@pytest.mark.parametrize("position", POSITIONS)
def test_tokens_are_dropped_out_behind_the_position_embedding(position):
    """Half of the tokens' numbers, while training, whatever the position embedding."""
    config = parts("gap", position)
    config["model"]["encoder"]["dropout_rate"] = 0.5
    model = from_reference(parameters(config), config)
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    tokens = model._pos_embed(model.patch_embed(x))
    kept = model.eval()._pos_embed(model.patch_embed(x))
    dropped = tokens == 0
    assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(tokens[~dropped], 2 * kept[~dropped])


def test_how_the_router_is_told_to_be_deterministic():
    """A deterministic router is without noise in training too; noise in evaluation is refused."""
    config = with_moe(parts("token", "learned"))
    router = config["model"]["encoder"]["moe"]["router"]
    for own, noise in ((None, 0.5), (False, 0.5), (True, 0.0)):
        config["model"]["encoder"]["moe"]["router"] = router | ({} if own is None else {"deterministic": own})
        assert from_reference(parameters(config), config).blocks[1].mlp.router.noise_std == noise
    config["model"]["encoder"]["moe"]["router"] = router | {"deterministic": False}
    with pytest.raises(ValueError, match=r"router\.deterministic=False in a configuration for evaluation"):
        from_reference(parameters(config), config | {"deterministic": True})


@pytest.mark.parametrize("inside", [True, False])
def test_mode(inside):
    """The model is in the mode that the configuration says, beside its arguments or among them; at evaluation where
    neither does."""
    for deterministic in (True, False, None):
        config = parts("token", "learned")
        del config["deterministic"]
        if deterministic is not None:
            (config["model"] if inside else config)["deterministic"] = deterministic
        assert from_reference(parameters(config), config).training == (deterministic is False)


@pytest.mark.parametrize(
    ("split", "drawn"),
    [(False, "alike"), (True, "apart"), (["params"], "apart"), (["dropout"], "alike"), (None, "alike")],
)
def test_how_experts_would_be_drawn_anew(split, drawn):
    """`split_rngs`, and with it `head_bias_init`, say how the model begins when its weights are drawn anew."""
    config = with_moe(parts("gap", "sincos2d", head_bias_init=-2.0), **({} if split is None else {"split_rngs": split}))
    model = from_reference(parameters(config), config)
    assert model.moe.expert_init == drawn
    model.init_weights()
    for stacked in (model.blocks[1].mlp.experts.up.weight, model.blocks[1].mlp.experts.down.weight):
        assert (stacked == stacked[:1]).all() == (drawn == "alike")
    assert (model.head.bias == -2.0).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_gradients_reach_every_parameter(classifier):
    """A loss of the logits has a gradient for each parameter of the tree, and none for what is not in it."""
    config = with_moe(parts(classifier, "learned", True, 6), group_size=5 if classifier == "token" else 4)
    arrays = parameters(config)
    model = from_reference(arrays, config)
    with vismoe.record(model) as routing:
        answers = model(torch.tensor(images()).permute(0, 3, 1, 2))
    (answers.square().sum() + routing.auxiliary_loss).backward()
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(array.size for array in arrays.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_what_is_missing_left_over_or_misshapen_is_named():
    """Of the parameters that only some models have, too, by the reference's names."""
    config = parts("map", "sincos2d", True, 6)
    arrays = parameters(config)
    own = [name for name in arrays if name.startswith(("MapHead", "pre_logits")) or "_ln" in name]
    assert len(own) == 8 + 2 + 2 + 2 + 1 + 4 + 2 + 4 - 2
    for name in own[::3]:
        with pytest.raises(ValueError, match=f"parameters that the configuration requires are missing: {name}$"):
            from_reference({other: array for other, array in arrays.items() if other != name}, config)
        with pytest.raises(ValueError, match=f"parameter {name} has shape"):
            from_reference(arrays | {name: arrays[name][None]}, config)
    for other in (parts("gap", "sincos2d", True, 6), parts("map", "sincos2d", False, 6)):
        with pytest.raises(ValueError, match=r"does not have the parameters (Encoder/.*_ln|MapHead)"):
            from_reference(arrays, other)
    with pytest.raises(ValueError, match=r"parameters that the configuration requires are missing: cls$"):
        from_reference(arrays, parts("token", "sincos2d", True, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "0"}, r"model\.classifier='0': accepted are 'token', 'gap', 'map'"),
        ({"name": "VisionTransformer"}, r"model\.name='VisionTransformer': accepted are .*'VisionTransformerMoe'"),
        ({"encoder": {"position_emb": {"name": "rope"}}}, r"position_emb\.name='rope': accepted are 'learned', "),
        ({"encoder": {"position_emb": {"temperature": 9.0}}}, r"position_emb has unknown fields: temperature"),
        ({"router": {"name": "SinkhornRouter"}}, r"moe\.router\.name='SinkhornRouter': accepted are 'NoisyTopExperts"),
        ({"router": {"dispatcher": {"name": "einsum"}}}, r"dispatcher\.capacity=None, \.capacity_factor=None"),
        ({"dispatcher": {"capacity": 3, "capacity_factor": 1.0}}, r"dispatcher\.capacity=3, \.capacity_factor=1\.0"),
        (
            {"dispatcher": {"capacity_factor": 1.0, "name": "dense"}},
            r"dispatcher\.name='dense': accepted are",
        ),
        (
            {"dispatcher": {"capacity_factor": 1.0, "capacity_ceil_or_round": "floor"}},
            r"capacity_ceil_or_round='floor'",
        ),
        ({"moe": {"group_size": None}}, r"^model\.encoder\.moe has no group_size"),
    ],
)
def test_values_that_are_not_understood(change, message):
    """A value that the model cannot have is a ValueError that says where it stands and what is accepted."""
    with pytest.raises(ValueError, match=message):
        from_reference(parameters(configuration()), configuration(**change))


def test_width_of_the_mlps():
    """timm is told a ratio: of each width the one that gives that width again."""
    for dim, mlp_dim in itertools.product((8, 12, 49, 384, 1280), range(1, 5000)):
        assert int(dim * _ratio(mlp_dim, dim)) == mlp_dim


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vmoe_tiny_patch16_224_dense", {}, r"blocks\.0\.mlp's activation \(only tanh GELU\)"),
        (
            "vmoe_tiny_patch16_224_last2_e8",
            {"router": "hash", "act_layer": "gelu_tanh"},
            r"blocks\.9\.mlp is a HashRouter with MLPExperts",
        ),
        ("vmoe_b16_last2_e8", {"combine": "renormalized"}, r"blocks\.9\.mlp\.router's combine='renormalized'"),
        ("vmoe_b16_last2_e8", {"shared": True}, r"blocks\.9\.mlp\.shared\.up\.weight"),
        ("vmoe_b16_dense", {"init_values": 0.1}, r"blocks\.0\.ls1\.gamma"),
        ("vmoe_b16_dense", {"reg_tokens": 2}, "reg_token"),
        ("vmoe_b16_dense", {"qk_norm": True}, r"blocks\.0\.attn\.k_norm\.bias"),
        ("vmoe_b16_dense", {"global_pool": "avg"}, r"global_pool='avg' with class_token=True, fc_norm\.bias"),
        ("vmoe_b16_dense", {"global_pool": "map"}, "global_pool='map' with class_token=True"),
        ("vmoe_b16_dense", {"no_embed_class": True}, "no_embed_class=True"),
        ("vmoe_b16_dense", {"qkv_bias": False}, r"this model lacks blocks\.0\.attn\.qkv\.bias, "),
        ("vmoe_b16_dense", {"stem": "conv"}, r"patch_embed\.backbone"),
    ],
)
def test_models_that_the_reference_cannot_be(name, overrides, message):
    """Parts that it does not have, or lacks, are named, whatever the model would compute with its names."""
    shape = {"embed_dim": 8, "depth": 12, "num_heads": 2, "img_size": 32, "num_classes": 3}
    with pytest.raises(ValueError, match=message):
        to_reference(vismoe.create_model(name, **shape | overrides))


def test_models_made_elsewhere():
    """A preset of the paper's sizes, compiled or wrapped or in bfloat16, has a tree; other networks have none; a bias
    on the choice, which loss-free balancing has moved, has no place in one."""
    shape = {"embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "img_size": 8, "patch_size": 4}
    shape |= {"moe_layers": [1], "num_experts": 4, "representation_size": 0, "num_classes": 3}
    model = vismoe.create_model("vmoe_b16_last2_e8", **shape)
    config = parts("token", "learned")
    arrays = to_reference(model)
    assert {name: array.shape for name, array in arrays.items()} == {
        name: array.shape for name, array in parameters(config).items()
    }
    assert_same_tree(to_reference(torch.nn.DataParallel(model)), arrays)
    x = images()
    model = from_reference(arrays, config)
    assert torch.equal(says(model, x), says(from_reference(to_reference(model), config), x))
    half = to_reference(model.bfloat16())
    assert_same_tree(half, {name: torch.tensor(array).bfloat16().float().numpy() for name, array in arrays.items()})
    with pytest.raises(ValueError, match="ResNet is not a SparseVisionTransformer"):
        to_reference(vismoe.create_model("timm:resnet10t"))
    balanced = vismoe.create_model("vmoe_b16_last2_e8", **shape, balance="bias", loss_weights={})
    to_reference(balanced)
    balanced.blocks[1].mlp.router.balance_bias[0] = 0.5
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.router\.balance_bias"):
        to_reference(balanced)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_of_other_types(dtype):
    """Trees kept in fewer or more bits are read as float32, in which models are made."""
    arrays = {name: array.astype(dtype) for name, array in parameters().items()}
    expected = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert_same_tree(to_reference(from_reference(arrays, configuration())), expected)


def test_arrays_are_copies():
    """Writing into what `to_reference` gave changes no model."""
    config = parts("token", "learned")
    model = from_reference(parameters(config), config)
    for array in to_reference(model).values():
        array[...] = 0
    assert_same_tree(to_reference(model), parameters(config))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_as_a_model_folder(tmp_path, classifier):
    """Such a model is written and opened as any other: config.json keeps every part, and the tree is the same."""
    config = with_moe(parts(classifier, "sincos2d", True, 6, head_bias_init=-2.0), dropout_rate=0.5)
    arrays = parameters(config)
    vismoe.save(from_reference(arrays, config), tmp_path / "model")
    model = vismoe.load(tmp_path / "model")
    assert_same_tree(to_reference(model), arrays)
    expected = torch.tensor(logits(config, arrays, images(12, 8)), dtype=torch.float32)
    torch.testing.assert_close(says(model, images(12, 8)), expected, rtol=1e-5, atol=1e-5)
    assert (model.head_bias_init, model.moe.expert_init, model.moe.expert_dropout) == (-2.0, "alike", 0.5)
