"""pytest tests/vit/test_upcycle_transformers.py: networks of Hugging Face's, for images, text and sound."""

import pytest
import torch
from torch import nn

import vismoe
from vismoe.moe import MoE

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = SIZES | {"image_size": 32, "patch_size": 8}
WAYS = [{"k": 1}, {"k": 2}, {"experts": "low-rank", "rank": 4}]
PARENTS = {
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES)),
    "deit": lambda: transformers.DeiTForImageClassification(transformers.DeiTConfig(**IMAGES)),
    "dinov2": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**IMAGES)),
    "dinov2, gated": lambda: transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(**IMAGES, use_swiglu_ffn=True)
    ),
    "dinov2 with registers": lambda: transformers.Dinov2WithRegistersForImageClassification(
        transformers.Dinov2WithRegistersConfig(**IMAGES)
    ),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**IMAGES)),
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**IMAGES)),
    "beit": lambda: transformers.BeitForImageClassification(transformers.BeitConfig(**IMAGES)),
    "ast": lambda: transformers.ASTForAudioClassification(
        transformers.ASTConfig(**SIZES, max_length=64, num_mel_bins=32)
    ),
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, vocab_size=50)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = PARENTS[name]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def output(model: nn.Module, name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "bert":
        return model(torch.randint(0, 50, (2, 7), generator=generator)).logits
    shape = (2, 64, 32) if name == "ast" else (2, 3, 32, 32)
    found = model(torch.randn(shape, generator=generator))
    return found.logits if hasattr(found, "logits") else found.pooler_output


@pytest.mark.parametrize("name", PARENTS)
def test_it_starts_as_its_parent(name):
    """Outputs within 1e-5, for MLPs in one module and in two with a residual between (BERT)."""
    parent = made(name)
    with torch.inference_mode():
        expected = output(parent, name)
        assert expected.std() > 1e-3
        for way in WAYS:
            sparse = vismoe.upcycle(parent, **way)
            assert sum(isinstance(module, MoE) for module in sparse.modules()) == 2
            torch.testing.assert_close(output(sparse, name), expected, rtol=0, atol=1e-5)


def test_padding_of_text_is_masked_out():
    """Within `vismoe.condition` what stands in padding changes no real token's output, no load, no balancing."""
    parent = made("bert").bert
    sparse = vismoe.upcycle(parent, num_experts=4).train()
    for module in sparse.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ids, mask = torch.randint(0, 50, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    mask[0, 4:], mask[2, 7:] = False, False
    found = []
    for padding in (0, 31):
        filled = torch.where(mask, ids, padding)
        with vismoe.condition(sparse, mask=mask), vismoe.record(sparse) as routing:
            hidden = sparse(filled, attention_mask=mask.long()).last_hidden_state
        (calls,) = {len(calls) for calls in routing.layers.values()}
        assert calls == 1
        loads = [call[0].load for call in routing.layers.values()]
        found.append((hidden[mask], loads))
        assert all(int(load.sum()) == int(mask.sum()) for load in loads)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    layer = next(module for module in sparse.modules() if isinstance(module, MoE))
    assert int(layer.router.balance_count.sum()) == int(mask.sum())


@pytest.mark.parametrize("name", ["vit", "bert", "dinov2, gated"])
def test_and_back(name):
    """A dense model made of it at once is its parent again, class by class and name by name."""
    parent = made(name)
    batch = torch.randint(0, 50, (2, 7)) if name == "bert" else torch.randn(2, 3, 32, 32)
    dense = vismoe.densify(vismoe.upcycle(parent), [batch])
    assert [type(module) for module in dense.modules()] == [type(module) for module in parent.modules()]
    for own, expected in zip(dense.state_dict().items(), parent.state_dict().items(), strict=True):
        assert own[0] == expected[0]
        torch.testing.assert_close(own[1], expected[1])
