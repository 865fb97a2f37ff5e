"""The bias as state: its type, its place in checkpoints, exact resume. Run: pytest tests/moe/test_balancing_state.py"""

import pytest
import torch

from vismoe import MLPExperts, MoE, TopKRouter
from vismoe.moe.routers.balancing import move_bias

# Not representable in float16 or bfloat16: a round trip through either would show.
EXACT = torch.tensor([0.1, -0.7, 1 / 3, 1e-9])


def tiny(**options) -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(8, 4, **options), MLPExperts(8, 16, 4))


CASTS = {
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.bfloat16(),
    "to float16": lambda layer: layer.to(torch.float16),
    "to device and bfloat16": lambda layer: layer.to("cpu", torch.bfloat16),
    "double": lambda layer: layer.double(),
    "half and back": lambda layer: layer.half().float(),
    "in a network": lambda layer: torch.nn.Sequential(layer).half()[0],
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_bias_stays_float32_and_exact(cast):
    """Casting a model leaves the bias in float32, and its value to the last bit; counts stay integers."""
    layer = tiny()
    layer.router.balance_bias.copy_(EXACT)
    layer.router.balance_count.copy_(torch.tensor([1, 2, 3, 2**40]))
    router = cast(layer).router
    assert router.balance_bias.dtype == torch.float32
    assert torch.equal(router.balance_bias, EXACT)
    assert router.balance_count.tolist() == [1, 2, 3, 2**40]
    assert router._buffers["balance_bias"] is router.balance_bias


def test_bias_moves_in_float32_in_a_bfloat16_model():
    """A move far below bfloat16's resolution at the bias's size is kept."""
    layer = tiny().bfloat16()
    count = torch.tensor([11, 9, 10, 10])
    layer.router.balance_bias.fill_(100.0)
    layer.router.balance_count.copy_(count)
    layer(torch.randn(3, 5, 8, dtype=torch.bfloat16))
    move = layer.router.balance_bias - 100
    assert 0 < move.abs().max() < 0.1  # bfloat16 has nothing between 100 and 100.5.
    torch.testing.assert_close(move, move_bias(torch.zeros(4), count), rtol=0, atol=1e-5)


def test_autocast_gives_the_same_bias():
    """Under autocast choices, counts and the moved bias are those of float32."""
    plain, cast = tiny(), tiny()
    for _ in range(3):
        x = torch.randn(3, 5, 8)
        plain(x)
        with torch.autocast("cpu", torch.bfloat16):
            cast(x)
    assert cast.router.balance_bias.dtype == torch.float32
    assert plain.router.balance_bias.abs().max() > 0
    assert torch.equal(plain.router.balance_bias, cast.router.balance_bias)
    assert torch.equal(plain.router.balance_count, cast.router.balance_count)


def test_meta_device_keeps_types():
    """A model built without memory gets float32 bias and integer counts when it is given memory."""
    with torch.device("meta"):
        layer = tiny()
    router = layer.to_empty(device="cpu").router
    assert (router.balance_bias.dtype, router.balance_count.dtype) == (torch.float32, torch.int64)
    assert not router.balance_bias.is_meta


def test_both_buffers_are_saved():
    """Bias and counts are part of a checkpoint."""
    state = tiny().state_dict()
    assert state["router.balance_bias"].dtype == torch.float32
    assert state["router.balance_count"].dtype == torch.int64


def step(layer: MoE, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    loss = (layer(x) - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_resume_is_exact():
    """A run that is cut between two steps and continued from its state dict ends bit-equal to one that was not."""
    batches = torch.randn(8, 3, 5, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    whole = tiny(k=2)
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)
    for x in batches:
        step(whole, optimizer, x)

    first = tiny(k=2)
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    for x in batches[:4]:
        step(first, optimizer, x)
    torch.manual_seed(99)
    second = MoE(TopKRouter(8, 4, k=2), MLPExperts(8, 16, 4))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    optimizer = torch.optim.SGD(second.parameters(), 0.1)
    for x in batches[4:]:
        step(second, optimizer, x)

    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert whole.router.balance_bias.abs().max() > 0
