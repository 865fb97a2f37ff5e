"""torchinfo.summary: pytest tests/tools/test_torchinfo.py"""

import pytest
import torch

from vismoe.moe import ROUTERS

from .networks import IMAGES, sparse_network

torchinfo = pytest.importorskip("torchinfo")


@pytest.mark.parametrize("router", ROUTERS)
def test_a_summary_has_every_parameter_and_every_layer(router):
    """A summary counts experts, and has a line for routers and stacked layers, with the shapes that they return."""
    model = sparse_network(router=router)
    summary = torchinfo.summary(model, input_data=IMAGES, verbose=0, depth=6)
    assert summary.total_params == sum(parameter.numel() for parameter in model.parameters())
    shapes = {info.class_name: info.output_size for info in summary.summary_list}
    assert shapes[type(model.blocks[3].mlp.router).__name__][-1] == 8
    assert shapes["StackedLinear"][-1] == 32


def test_a_routing_is_a_dictionary_of_its_fields():
    """Hooks and tools find a router's tensors by name."""
    seen = []
    model = sparse_network()
    model.blocks[3].mlp.router.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(IMAGES)
    (routing,) = seen
    assert set(routing) == {"plan", "gates", "logits", "noisy_logits", "load", "mask"}
    assert routing["gates"] is routing.gates
    assert torch.equal(routing["load"], routing.load)
