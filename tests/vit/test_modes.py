"""A borrowed model comes back as it was: each submodule's own mode, each layer's product and exchange, also after an
error.

pytest tests/vit/test_modes.py
"""

import pytest
import torch
from torch import nn

import vismoe
from vismoe.deploy import export_onnx
from vismoe.moe import LocalExchange, MoE, grouped, loop, padded
from vismoe.vit import cost, evaluating, measure_usage, reduce_experts, unfused_attention, using_backend

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def partly_frozen():
    """A network in training mode with a batch norm, a router and one expert's layer frozen in evaluation mode, whose
    layers do not all multiply alike."""
    torch.manual_seed(0)
    options = {"depth": 2, "num_experts": 3, "num_classes": 5, "moe_layers": [0, 1]}
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", in_chans=3, **options)
    model.norm = nn.Sequential(model.norm, nn.LayerNorm(64))
    model.fc_norm = nn.BatchNorm1d(64)
    model.train()
    model.fc_norm.eval()
    model.blocks[0].mlp.router.eval()
    model.blocks[1].mlp.experts.up.eval()
    model.blocks[1].mlp.product = loop
    model.blocks[1].mlp.bfloat16_exchange = True
    return model


def state(model):
    layers = [(layer.product, layer.exchange) for layer in model.modules() if isinstance(layer, MoE)]
    return {name: module.training for name, module in model.named_modules()}, layers


def failing(module, inputs):
    raise RuntimeError("on purpose")


def broken_batches():
    yield IMAGES
    raise RuntimeError("on purpose")


def test_evaluating():
    """Inside, everything is at evaluation; after, also after an error, each module is as it was; blocks nest."""
    model = partly_frozen()
    before = state(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        with evaluating(model.blocks[0]):
            pass
        assert not any(module.training for module in model.modules())
    assert state(model) == before
    with pytest.raises(RuntimeError, match="on purpose"), evaluating(model):
        raise RuntimeError("on purpose")
    assert state(model) == before


def test_using_backend():
    """Inside, all sparse layers have what is given and their own of what is not; after, also after an error, each has
    its own."""
    model = partly_frozen()
    first, second = model.blocks[0].mlp, model.blocks[1].mlp
    before, exchange = state(model), LocalExchange()
    with using_backend(model, padded):
        assert first.product is second.product is padded
        assert second.bfloat16_exchange
    assert state(model) == before
    with using_backend(model, exchange=exchange):
        assert first.exchange is second.exchange is exchange
        assert (first.product, second.product) == (grouped, loop)
    assert state(model) == before
    with pytest.raises(RuntimeError, match="on purpose"), using_backend(model, padded, exchange):
        raise RuntimeError("on purpose")
    assert state(model) == before


BORROWERS = {
    "cost": lambda model, path: cost(model, (3, 8, 8)),
    "measure_usage": lambda model, path: measure_usage(model, [IMAGES]),
    "densify": lambda model, path: vismoe.densify(model, [IMAGES]),
    "reduce_experts": lambda model, path: reduce_experts(model, 2, [IMAGES]),
    "export_onnx": lambda model, path: export_onnx(model, path / "model.onnx"),
}


@pytest.mark.parametrize(
    ("borrower", "fails"),
    [
        pytest.param(borrower, fails, marks=[pytest.mark.slow] * (borrower == "export_onnx" and not fails))
        for borrower in BORROWERS
        for fails in (False, True)
    ],
)
def test_borrowers_give_back_what_they_got(borrower, fails, tmp_path):
    """Whatever only runs a model leaves it as it was, where it succeeds and where the model fails in the middle."""
    model = partly_frozen()
    before = state(model)
    if not fails:
        BORROWERS[borrower](model, tmp_path)
    else:
        handle = model.blocks[1].mlp.register_forward_pre_hook(failing)
        with pytest.raises(Exception, match="on purpose"):
            BORROWERS[borrower](model, tmp_path)
        handle.remove()
    assert state(model) == before


def test_a_set_that_fails():
    """Batches that end in an error leave the model as it was too."""
    model = partly_frozen()
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        measure_usage(model, broken_batches())
    assert state(model) == before


def test_short_attention_is_not_fused(monkeypatch):
    """Only inside the context, only with few tokens, with the same gradients, also when activations are computed again
    in backward."""
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", in_chans=3, num_classes=5, img_size=8)
    model.set_grad_checkpointing()
    attention = model.blocks[0].attn
    attention.fused_attn = model.blocks[1].attn.fused_attn = True
    model.blocks[2].attn.fused_attn = False

    def gradient():
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        return attention.qkv.weight.grad

    expected, fused = gradient(), []
    attention.attn_drop.register_forward_pre_hook(lambda *_: fused.append(False))  # only unfused attention calls it
    with unfused_attention(model):
        torch.testing.assert_close(gradient(), expected)
        assert fused
        with monkeypatch.context() as patch:
            patch.setattr("vismoe.vit.modes.MOST_TOKENS", 16)
            fused.clear()
            gradient()
    assert not fused
    gradient()
    assert not fused
    assert [block.attn.fused_attn for block in model.blocks[:3]] == [True, True, False]
