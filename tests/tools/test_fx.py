"""Features by torch.fx: pytest tests/tools/test_fx.py"""

import pytest
import timm.models
import torch
from torch.fx import symbolic_trace

from .networks import IMAGES, sparse_network


@pytest.mark.parametrize("options", [{}, {"ensemble_size": 2}], ids=["plain", "ensemble"])
def test_a_layer_is_one_node_of_a_trace(options):
    """Routing depends on values, which a trace has not: each sparse layer is one node, and the trace answers as the
    network does."""
    model = sparse_network(**options)
    traced = symbolic_trace(model)
    assert [str(node.target) for node in traced.graph.nodes if str(node.target).endswith("mlp")] == [
        "blocks.1.mlp",
        "blocks.3.mlp",
    ]
    assert torch.equal(traced(IMAGES), model(IMAGES))


def test_timm_and_torchvision_extract_features():
    """`create_feature_extractor` of both takes blocks, and sparse layers by their names."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = sparse_network()
    for create in (timm.models.create_feature_extractor, extraction.create_feature_extractor):
        features = create(model, ["blocks.1.mlp", "blocks.3"])(IMAGES)
        assert {name: tuple(value.shape) for name, value in features.items()} == {
            "blocks.1.mlp": (3, 5, 32),
            "blocks.3": (3, 5, 32),
        }
        tokens = model.norm(features["blocks.3"])
        assert torch.equal(model.forward_head(tokens), model(IMAGES))
