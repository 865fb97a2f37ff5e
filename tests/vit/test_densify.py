"""pytest tests/vit/test_densify.py: back to fewer experts, or none."""

import pytest
import timm
import torch
from torch import nn

import vismoe
from vismoe.moe import MoE
from vismoe.vit import measure_usage, reduce_experts

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WAYS = [{}, {"k": 2}, {"experts": "low-rank", "rank": 2}, {"split": 2}, {"split": 4, "num_experts": 8}]


def parent() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=4, num_heads=2).eval()


def apart(model: nn.Module) -> nn.Module:
    """The experts of a sparse model made different."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, MoE):
            for trained in (p for p in module.experts.parameters() if p.requires_grad):
                trained.data += 0.05 * torch.randn_like(trained)
    return model.eval()


@pytest.mark.parametrize("how", ["merge", "expert"])
@pytest.mark.parametrize("way", WAYS)
def test_an_upcycled_model_becomes_its_parent_again(way, how):
    """As long as nothing was trained: same classes, same names, same outputs."""
    dense = vismoe.densify(vismoe.upcycle(parent(), **way), [IMAGES], how)
    assert not any(isinstance(module, MoE) for module in dense.modules())
    assert dense.state_dict().keys() == parent().state_dict().keys()
    torch.testing.assert_close(dense(IMAGES), parent()(IMAGES))


def test_usage_is_what_was_counted():
    """Against the record of the same images, batch by batch."""
    model = apart(vismoe.upcycle(parent(), k=2))
    usage = measure_usage(model, IMAGES.split(3))
    with vismoe.record(model) as routing:
        model(IMAGES)
    for name, (call,) in routing.layers.items():
        torch.testing.assert_close(usage[name].share, call.load / call.load.sum())
        gates = call.gates[0]
        best = gates.topk(2)
        expected = torch.zeros_like(gates).scatter(1, best.indices, best.values / best.values.sum(1, keepdim=True))
        torch.testing.assert_close(usage[name].weight, expected.mean(0), rtol=1e-4, atol=1e-5)


def test_the_expert_that_is_used_most():
    """how="expert": its weights, in the parent's class; how="merge": the mean by use."""
    model = apart(vismoe.upcycle(parent(), num_experts=3))
    usage = measure_usage(model, [IMAGES])
    for how in ("expert", "merge"):
        dense = vismoe.densify(model, [IMAGES], how)
        for number in (1, 3):
            experts = model.blocks[number].mlp.experts
            share = usage[f"blocks.{number}.mlp"].share
            shares = nn.functional.one_hot(share.argmax(), 3).float() if how == "expert" else share
            expected = torch.einsum("e,eij->ij", shares, experts.up.weight)
            torch.testing.assert_close(dense.blocks[number].mlp.fc1.weight, expected)


def test_raw_gates_are_kept_in_scale():
    """Where the experts' outputs were weighted by raw gates, the MLP has the mean weight."""
    with pytest.warns(UserWarning, match="combine='gate'"):
        model = vismoe.upcycle(parent(), moe_layers=[3], combine="gate")
    usage = measure_usage(model, [IMAGES])["blocks.3.mlp"]
    dense = vismoe.densify(model, [IMAGES])
    expected = parent().blocks[3].mlp.fc2.weight * usage.weight.sum()
    torch.testing.assert_close(dense.blocks[3].mlp.fc2.weight, expected)


@pytest.mark.parametrize("how", ["merge", "expert"])
def test_fewer_experts(how):
    """Those stay that are used most, with their router rows; the model still trains and balances, and saves."""
    model = apart(vismoe.upcycle(parent()))
    usage = measure_usage(model, [IMAGES])
    small = reduce_experts(model, 3, [IMAGES], how)
    for number in (1, 3):
        layer, before = small.blocks[number].mlp, model.blocks[number].mlp
        share = usage[f"blocks.{number}.mlp"].share.tolist()
        stay = sorted(sorted(range(8), key=lambda expert, share=share: -share[expert])[:3])
        torch.testing.assert_close(layer.router.weight, before.router.weight[stay])
        assert torch.equal(layer.experts.up.weight, before.experts.up.weight[stay]) == (how == "expert")
    assert small.moe.num_experts == 3
    small.train()(IMAGES).sum().backward()
    assert small.blocks[3].mlp.experts.up.weight.grad.shape[0] == 3


def test_merging_goes_to_the_most_alike():
    """Each expert that goes is averaged, by use, into the one that stays whose router row is most like its own."""
    model = apart(vismoe.upcycle(parent(), num_experts=4, moe_layers=[3]))
    layer = model.blocks[3].mlp
    rows = torch.eye(32)[:4]
    rows[3] = rows[1] + 0.1 * rows[0]
    with torch.no_grad():
        layer.router.weight.copy_(rows)
    usage = measure_usage(model, [IMAGES])["blocks.3.mlp"].share
    stay = sorted(usage.topk(2).indices.tolist())
    small = reduce_experts(model, 2, [IMAGES]).blocks[3].mlp
    unit = nn.functional.normalize(layer.router.weight.detach())
    nearest = [max(stay, key=lambda kept, n=n: (float(unit[n] @ unit[kept]), -kept)) for n in range(4)]
    for place, kept in enumerate(stay):
        group = [n for n in range(4) if nearest[n] == kept]
        expected = sum(usage[n] * layer.experts.up.weight[n] for n in group) / sum(usage[n] for n in group)
        torch.testing.assert_close(small.experts.up.weight[place], expected)


def test_what_cannot_be_followed():
    """Dense models, no images, shared experts, too few or too many experts, merging what cannot be averaged."""
    sparse = vismoe.upcycle(parent(), k=2)
    for call, message in (
        (lambda: vismoe.densify(parent(), [IMAGES]), "dense already"),
        (lambda: vismoe.densify(sparse, []), "no batch was given"),
        (lambda: vismoe.densify(vismoe.upcycle(parent(), shared=True), [IMAGES]), "has a shared expert"),
        (lambda: reduce_experts(sparse, 1, [IMAGES]), "num_experts=1: blocks.1.mlp sends each token to 2 experts"),
        (lambda: reduce_experts(sparse, 9, [IMAGES]), "num_experts=9: blocks.1.mlp has 8 experts; they can only be"),
        (lambda: reduce_experts(vismoe.upcycle(parent(), split=2), 4, [IMAGES]), "are low-rank or parts of MLPs"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
