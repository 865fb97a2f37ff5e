"""pytest tests/moe/test_properties.py: what must hold for any sizes, options and tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vismoe
from vismoe.moe.routers import losses

DIM = 6
few = settings(deadline=None, max_examples=30, derandomize=True)
sizes = st.integers(1, 24)
experts = st.integers(1, 7)
seeds = st.integers(0, 10**6)


def layer_of(num_experts, k, seed, **options):
    torch.manual_seed(seed)
    router = vismoe.TopKRouter(DIM, num_experts, min(k, num_experts), **{"balance": "none", **options})
    return vismoe.MoE(router, vismoe.MLPExperts(DIM, 8, num_experts))


@few
@given(sizes, experts, st.integers(1, 4), st.floats(0.05, 3), st.booleans(), st.sampled_from([1, 4]), seeds)
def test_kept_choices_fit_capacity(size, num_experts, k, factor, batch_priority, multiple_of, seed):
    """No expert of a group keeps more than its capacity; no token meets an expert twice; what is dropped wanted a full
    expert; and only dropped and masked choices are missing."""
    options = {"capacity_factor": factor, "capacity_multiple_of": multiple_of, "batch_priority": batch_priority}
    router = layer_of(num_experts, k, seed, **options).router
    groups, mask = 2, torch.rand(2, size) < 0.8
    routing = router(torch.randn(groups, size, DIM), mask)
    capacity, plan = router.capacity(size), routing.plan
    assert capacity <= size
    expert = torch.repeat_interleave(torch.arange(num_experts), plan.count)
    token = plan.token[: len(expert)]
    assert len(set(zip(token.tolist(), expert.tolist(), strict=True))) == len(expert)
    assert mask.flatten()[token].all()
    assert plan.count.max() <= plan.capacity
    kept = torch.zeros(groups, num_experts, dtype=torch.int64)
    kept.index_put_((token // size, expert), torch.ones_like(token), accumulate=True)
    assert kept.max() <= capacity
    chosen = routing.gates.topk(router.k).indices
    wanted = torch.nn.functional.one_hot(chosen, num_experts).sum(2) * mask[..., None]
    assert torch.equal(kept, wanted.sum(1).clamp_max(capacity))
    assert torch.equal(routing.load, wanted.sum((0, 1)))


@few
@given(sizes, experts, st.integers(1, 4), seeds)
def test_order_of_tokens_does_not_matter(size, num_experts, k, seed):
    """Where nothing is dropped, permuted tokens give the permuted output."""
    layer = layer_of(num_experts, k, seed)
    x, order = torch.randn(1, size, DIM), torch.randperm(size)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-5, atol=1e-5)


@few
@given(st.integers(2, 7), st.integers(1, 3), st.integers(1, 4), st.floats(0.1, 5), seeds)
def test_even_load_costs_nothing(num_experts, k, rounds, spread, seed):
    """At a perfectly even load importance and load losses are 0 and so, never NaN, is their gradient."""
    torch.manual_seed(seed)
    k = min(k, num_experts)
    row = spread * torch.randn(num_experts)
    even = torch.stack([row.roll(shift) for shift in range(num_experts)] * rounds)[None]
    for logits in (even, torch.zeros_like(even)):
        logits = logits.clone().requires_grad_()
        noisy = logits + 0.1 * torch.ones_like(logits)
        for loss in (losses.importance_loss(logits.softmax(-1)), losses.load_loss(logits, noisy, k, 0.2)):
            (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
            assert loss.abs().max() < 1e-10
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1e-5


@few
@given(st.integers(1, 5), sizes, experts, st.integers(1, 4), seeds)
def test_image_is_independent_of_its_batch(images, size, num_experts, k, seed):
    """At evaluation an image's output is the same alone as among others, although the layer trained with a capacity."""
    layer = layer_of(num_experts, k, seed, balance="bias", capacity_factor=1.05, eval_capacity_factor="none").eval()
    layer.router.balance_bias.normal_()
    x = torch.randn(images, size, DIM)
    alone = torch.cat([layer(image[None]) for image in x])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-5)


@few
@given(st.integers(1, 4), sizes, experts, st.integers(1, 4), st.booleans(), seeds)
def test_padding_changes_nothing(images, size, num_experts, k, capacity, seed):
    """Padding gives 0 and leaves outputs and load of the other tokens as they are without it, with a capacity too if
    that binds nobody; what stands in the padding is of no matter."""
    options = {"capacity_factor": float(num_experts), "eval_capacity_factor": "same"} if capacity else {}
    layer = layer_of(num_experts, k, seed, **options)
    x, padding = torch.randn(images, size, DIM), 100 * torch.randn(images, 3, DIM)
    mask = torch.cat([torch.ones(images, size, dtype=torch.bool), torch.zeros(images, 3, dtype=torch.bool)], 1)
    with vismoe.record(layer) as recording:
        alone, padded = layer(x), layer(torch.cat([x, padding], 1), mask)
    first, second = recording.layers[""]
    torch.testing.assert_close(padded[:, :size], alone, rtol=1e-5, atol=1e-5)
    assert not padded[:, size:].any()
    assert torch.equal(first.load, second.load)
    for name in first.losses:
        torch.testing.assert_close(second.losses[name], first.losses[name], rtol=1e-4, atol=1e-5)
