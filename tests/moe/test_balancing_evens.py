"""A skewed router gets even in a loop that knows nothing of balancing. Run: pytest tests/moe/test_balancing_evens.py"""

import pytest
import torch

from vismoe import MLPExperts, MoE, TopKRouter, record

DIM = 16


def skewed_layer(num_experts: int, balance: str) -> tuple[MoE, torch.Tensor]:
    """A layer whose first expert gets nearly every token, by a direction that all tokens share; and that direction."""
    torch.manual_seed(0)
    shared = torch.nn.functional.normalize(torch.randn(DIM), dim=0)
    layer = MoE(TopKRouter(DIM, num_experts, balance=balance), MLPExperts(DIM, 16, num_experts))
    with torch.no_grad():
        layer.router.weight[0] += 2 * shared
    return layer, 2 * shared


def unevenness(layer: MoE, held_out: torch.Tensor) -> float:
    """The largest expert's load over the mean load."""
    with torch.no_grad(), record(layer.eval()) as routing:
        layer(held_out)
    layer.train()
    load = routing.layers[""][0].load.float()
    return (load.max() / load.mean()).item()


def train(num_experts: int, balance: str) -> tuple[float, float]:
    """Unevenness on held-out tokens before and after training by `loss(model(x))` alone."""
    layer, shared = skewed_layer(num_experts, balance)
    generator = torch.Generator().manual_seed(1)
    held_out = torch.randn(1, 2048, DIM, generator=generator) + shared
    target = torch.randn(DIM, DIM, generator=generator)
    optimizer = torch.optim.AdamW(layer.parameters(), 1e-3)
    before = unevenness(layer, held_out)
    for _ in range(200):
        x = torch.randn(8, 64, DIM, generator=generator) + shared
        loss = (layer(x) - (x @ target).tanh()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, unevenness(layer, held_out)


@pytest.fixture(autouse=True)
def _one_thread():
    """Products this small only lose by a second thread, and a hundredfold where another process wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("num_experts", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_bias_evens_a_skewed_router(num_experts):
    """With the default balancing, max ÷ mean load falls below 2 though one expert began with nearly all tokens."""
    before, after = train(num_experts, "bias")
    assert before > 0.75 * num_experts
    assert after < 2


@pytest.mark.parametrize("num_experts", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_without_balancing_it_stays_skewed(num_experts):
    """The same training with balance="none" stays uneven: it is the bias that the test above sees."""
    _, after = train(num_experts, "none")
    assert after >= 2
