"""Weights that are elsewhere: pytest tests/tools/test_accelerate.py"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vismoe import MLPExperts, MoE, TopKRouter
from vismoe.moe import MLP, ROUTERS, LowRankExperts, grouped, loop, padded

from .networks import IMAGES, sparse_network

LAYERS = {
    "gated, with norm": lambda: MoE(TopKRouter(16, 4), MLPExperts(16, 32, 4, gated=True, norm=True)),
    "low-rank": lambda: MoE(TopKRouter(16, 4), LowRankExperts(MLP(16, 32, F.gelu), 4, 2)),
    **{name: lambda name=name: MoE(ROUTERS[name](16, 4), MLPExperts(16, 32, 4)) for name in ROUTERS},
}


@pytest.mark.parametrize("where", ["CPU", "disk"])
def test_offloaded_weights_give_the_same_logits(where, tmp_path):
    """accelerate brings a module's weights when the module is called: experts' too, as a dense network's."""
    accelerate = pytest.importorskip("accelerate")
    cpu, plain = torch.device("cpu"), sparse_network()
    if where == "CPU":
        offloaded = accelerate.cpu_offload(sparse_network(), execution_device=cpu)
    else:
        offloaded = accelerate.disk_offload(sparse_network(), tmp_path, execution_device=cpu)
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(offloaded(IMAGES), plain(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", [grouped, padded, loop])
@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_without_values_is_an_error(name, product):
    """PyTorch multiplies by a weight on meta without an error, and answers with whatever the memory held. A layer of
    ours never does: each of its own parameters and buffers, alone on meta, is an error while training."""
    layer = LAYERS[name]()
    layer.product = product
    with torch.random.fork_rng():
        x = torch.randn(2, 6, 16)
    for path in layer.state_dict():
        if ".mlp." in path:  # a Linear layer of torch's
            continue
        broken = copy.deepcopy(layer)
        owner, _, own_name = path.rpartition(".")
        module = broken.get_submodule(owner)
        tensor = getattr(module, own_name)
        replaced = tensor.detach().to("meta")
        setattr(module, own_name, nn.Parameter(replaced) if isinstance(tensor, nn.Parameter) else replaced)
        with pytest.raises(RuntimeError, match="meta"):
            assert_has_values(broken(x))


def assert_has_values(answer: torch.Tensor) -> None:
    if answer.is_meta:
        raise RuntimeError("an answer on meta says by itself that it has no values")


def test_the_error_says_what_to_do():
    """The message names the weight's shape, and what loads it."""
    layer = MoE(TopKRouter(16, 4), MLPExperts(16, 32, 4))
    layer.experts.to("meta")
    with pytest.raises(RuntimeError, match=r"\(4, 32, 16\) is on the meta device.*load_state_dict"):
        layer(torch.randn(1, 6, 16))
