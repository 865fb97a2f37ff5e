"""Attributions: pytest tests/tools/test_captum.py"""

import pytest
import torch

from .networks import IMAGES, sparse_network

captum_attr = pytest.importorskip("captum.attr")


def test_integrated_gradients_and_activations():
    """Integrated gradients of soft routing, which has no jumps, sum to the difference of logits; activations of a layer
    and of a stacked layer in it are what they return."""
    soft = sparse_network(router="soft")
    attributions = captum_attr.IntegratedGradients(soft).attribute(IMAGES, target=1, n_steps=50, internal_batch_size=15)
    difference = (soft(IMAGES) - soft(torch.zeros_like(IMAGES)))[:, 1]
    torch.testing.assert_close(attributions.sum((1, 2, 3)).float(), difference, rtol=0, atol=1e-3)
    model = sparse_network()
    layer = model.blocks[3].mlp
    tokens = captum_attr.LayerActivation(model, layer).attribute(IMAGES)
    assert tokens.shape == (3, 5, 32)
    assert captum_attr.LayerActivation(model, layer.experts.up).attribute(IMAGES).shape == (15, 128)
    attributions = captum_attr.IntegratedGradients(model).attribute(IMAGES, target=1, n_steps=3, internal_batch_size=9)
    assert attributions.abs().amin() >= 0
    assert attributions.any()
