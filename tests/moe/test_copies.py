"""Copies of a layer: what they share and what they do not. Run: pytest tests/moe/test_copies.py"""

import copy
import pickle

import pytest
import torch

from vismoe import MLPExperts, MoE, TopKRouter, condition, record

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}


@pytest.fixture(params=COPIES.values(), ids=COPIES)
def duplicate(request):
    return request.param


def tiny() -> MoE:
    torch.manual_seed(0)
    layer = MoE(TopKRouter(8, 4, k=2), MLPExperts(8, 16, 4))
    for _ in range(3):
        layer(torch.randn(2, 5, 8))
    return layer


def test_copy_computes_and_continues_alike(duplicate):
    """A copy has the parameters, bias and counts of its original, trains on bit-equal, and shares no memory."""
    layer = tiny()
    twin = duplicate(layer)
    x = torch.randn(2, 5, 8)
    assert torch.equal(layer(x), twin(x))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
        assert value.data_ptr() != twin.state_dict()[name].data_ptr(), name


def test_copy_inside_a_record_is_not_recorded(duplicate):
    """A copy made while its original is recorded starts unrecorded: neither sees the other's calls."""
    layer, x = tiny(), torch.randn(2, 5, 8)
    with record(layer) as routing:
        layer(x)
        twin = duplicate(layer)
        twin(x)
        assert len(routing.layers[""]) == 1
        with record(twin) as of_twin:
            twin(x)
    layer(x)
    assert len(routing.layers[""]) == 1
    assert len(of_twin.layers[""]) == 1
    assert not twin.tape.open


def test_copy_inside_a_condition_is_unconditioned(duplicate):
    """A copy made inside a `condition` block obeys none: the block names its original."""
    layer, x = tiny().eval(), torch.randn(2, 5, 8)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    with condition(layer, mask=mask):
        twin = duplicate(layer)
        assert torch.equal(layer(x), torch.zeros(2, 5, 8))
        assert twin(x).abs().min() > 0
