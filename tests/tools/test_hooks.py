"""What hangs on modules: hooks, pruning, norms of weights: pytest tests/tools/test_hooks.py"""

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import vismoe

from .networks import IMAGES, sparse_network, stacked_layers


def test_hooks_see_every_stacked_layer():
    """Forward and backward hooks of stacked layers run, as those of Linear layers do."""
    model, seen = sparse_network(), []
    for layer in stacked_layers(model):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(("forward", tuple(output.shape))))
        layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(("backward", len(grad_out))))
    model(IMAGES).sum().backward()
    assert seen == [("forward", (15, 128)), ("forward", (15, 32))] * 2 + [("backward", 1)] * 4


def test_pruned_experts():
    """A mask of torch.nn.utils.prune holds in the forward and in gradients, and stays when it is made permanent."""
    model = sparse_network()
    before = model(IMAGES)
    for layer in stacked_layers(model):
        prune.l1_unstructured(layer, "weight", 0.5)
    masked = model(IMAGES)
    assert (masked - before).abs().max() > 1e-4
    masked.sum().backward()
    for layer in stacked_layers(model):
        assert not layer.weight_orig.grad[layer.weight_mask == 0].any()
        prune.remove(layer, "weight")
    torch.testing.assert_close(model(IMAGES), masked, rtol=1e-5, atol=1e-5)


def test_pruning_is_made_permanent_before_upcycling():
    """PyTorch copies no network with masks: the error says what to do, and is not PyTorch's about graph leaves."""
    dense = vismoe.densify(sparse_network(), [IMAGES])
    pruned = dense.blocks[1].mlp.fc1
    prune.l1_unstructured(pruned, "weight", 0.5)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1: pruned, .*prune\.remove"):
        vismoe.upcycle(dense)
    prune.remove(pruned, "weight")
    torch.testing.assert_close(vismoe.upcycle(dense)(IMAGES), dense(IMAGES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_norms_of_stacked_weights(norm):
    """Spectral and weight norm of a stacked layer: the parametrized weight is what rows meet, and all parts train."""
    model = sparse_network()
    for layer in stacked_layers(model):
        norm(layer)
    with_norm = model(IMAGES)
    with_norm.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for layer in stacked_layers(model):
            torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(model(IMAGES), with_norm)
    if norm is parametrizations.spectral_norm:
        assert (with_norm - sparse_network()(IMAGES)).abs().max() > 1e-4


def test_weights_that_are_not_numbers_are_named():
    """A quantised or sharded weight cannot be copied into experts: the error says so, not how the tensor is built."""
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor")
    dense = vismoe.densify(sparse_network(), [IMAGES])
    linear = dense.blocks[1].mlp.fc1
    linear.weight = torch.nn.Parameter(two_tensor.TwoTensor(linear.weight.detach(), linear.weight.detach()))
    with pytest.raises(ValueError, match=r"Mlp\.fc1 is a Linear layer whose weight is a TwoTensor, quantised"):
        vismoe.upcycle(dense, moe_layers=[1])
