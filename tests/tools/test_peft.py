"""LoRA on experts: pytest tests/tools/test_peft.py"""

import copy

import pytest
import torch
from torch.nn import functional as F

import vismoe

from .networks import IMAGES, LABELS, sparse_network

peft = pytest.importorskip("peft")
FULL = ["experts.up.weight", "experts.down.weight"]
LOW_RANK = ["experts.up.a.weight", "experts.down.b.weight"]


@pytest.mark.parametrize("experts", ["full", "low-rank"])
def test_adapters_of_experts_act_train_and_merge(experts):
    """`target_parameters` of PEFT's LoRA: adapters of stacked weights change the logits, have gradients while training,
    and the merged network answers as the unmerged one."""
    model, targets = sparse_network(), FULL
    if experts == "low-rank":
        dense = vismoe.densify(copy.deepcopy(model), [IMAGES])
        model, targets = vismoe.upcycle(dense, experts="low-rank", rank=2, moe_layers=[1, 3]).eval(), LOW_RANK
    before = model(IMAGES)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"], target_parameters=targets))
    adapters = {name: p for name, p in adapted.named_parameters() if "lora_" in name and "experts" in name}
    assert len(adapters) == 2 * 2 * len(targets)
    for name, parameter in adapters.items():
        if "lora_B" in name or experts == "low-rank":
            torch.nn.init.normal_(parameter, std=0.5)
    unmerged = adapted.eval()(IMAGES)
    assert (unmerged - before).abs().max() > 1e-4
    F.cross_entropy(adapted.train()(IMAGES), LABELS).backward()
    assert [name for name, parameter in adapters.items() if parameter.grad is None] == []
    torch.testing.assert_close(adapted.merge_and_unload().eval()(IMAGES), unmerged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [{"target_modules": ["fc1"]}, {"target_parameters": ["fc1.weight"]}])
def test_adapters_are_merged_before_upcycling(target):
    """An adapter around an MLP would be lost: the error says to merge it first, and then it works."""
    dense = vismoe.densify(sparse_network(), [IMAGES])
    adapted = peft.get_peft_model(dense, peft.LoraConfig(r=2, **target))
    with pytest.raises(ValueError, match=r"adapter that is not merged: .*merge_and_unload"):
        vismoe.upcycle(adapted)
    merged = adapted.merge_and_unload().eval()
    torch.testing.assert_close(vismoe.upcycle(merged)(IMAGES), merged(IMAGES), rtol=0, atol=1e-5)
