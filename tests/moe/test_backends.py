"""pytest tests/moe/test_backends.py: however a plan is carried out, the result is that of plain indexing."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vismoe
from vismoe.moe import LocalExchange, grouped, loop, padded
from vismoe.moe.execution.grouped_linear import grouped_linear
from vismoe.moe.execution.layouts import SortedRows, Tiles
from vismoe.moe.plan import plan_from_choices

DIM, HIDDEN, EXPERTS = 16, 24, 5
EXCHANGE = LocalExchange()


class Elsewhere(torch.Tensor):
    """A CPU tensor that says it is not, to be sent where a device's tensors go."""

    @property
    def device(self):
        return torch.device("cuda")


def device_product(experts, rows):
    """What `grouped` does in bfloat16 off the CPU: one product of all rows by the device's own operator."""
    elsewhere = rows.values.as_subclass(Elsewhere)
    return experts(elsewhere, SortedRows(rows)).as_subclass(torch.Tensor)


def tiles_of(height):
    def product(experts, rows):
        tiles = Tiles(rows, height)
        return tiles.take_out(experts(tiles.put_in(rows.values), tiles))

    return product


BACKENDS = {
    "grouped": grouped,
    "padded": padded,
    "tiles1": tiles_of(1),
    "tiles4": tiles_of(4),
    "tiles64": tiles_of(64),
    "device_product": device_product,
}


def layer_and_input(case):
    """A layer, its input and its mask for one situation of routing."""
    torch.manual_seed(0)
    shape = {"no_tokens": (2, 0, DIM), "no_images": (0, 7, DIM)}.get(case, (3, 7, DIM))
    dropping = case in ("dropping", "dropping_masked", "groups")
    router = vismoe.TopKRouter(DIM, EXPERTS, 2, balance="none", capacity_factor=0.6 if dropping else "none")
    router.capacity_multiple_of = 1
    x = torch.randn(shape)
    if case == "empty_experts":
        # Tokens whose first feature is 1 and experts 1 and 3 that are put off by it.
        x[..., 0] = 1
        with torch.no_grad():
            router.weight[:, 0] = torch.tensor([0.0, -50.0, 0.0, -50.0, 0.0])
    if case == "one_gets_all":
        router.k = 1
        x[..., 0] = 1
        with torch.no_grad():
            router.weight[:, 0] = torch.tensor([0.0, 0.0, 30.0, 0.0, 0.0])
    mask = None
    if "masked" in case:
        mask = torch.ones(shape[:2], dtype=torch.bool)
        mask[0, 3:] = mask[2, 0] = False
    if case == "all_masked":
        mask = torch.zeros(shape[:2], dtype=torch.bool)
    layer = vismoe.MoE(router, vismoe.MLPExperts(DIM, HIDDEN, EXPERTS), group_size=7 if case == "groups" else "none")
    return layer, x, mask


def results(layer, x, mask, backend):
    """Output and gradients by name. The loss weighs each output differently."""
    layer.backend = backend
    layer.zero_grad(set_to_none=True)
    x = x.detach().clone().requires_grad_()
    y = layer(x, mask)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    return found | {name: parameter.grad for name, parameter in layer.named_parameters()}


def assert_same(ours, expected, **tolerance):
    for name, value in expected.items():
        assert (ours[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


CASES = (
    "dropless",
    "dropping",
    "masked",
    "dropping_masked",
    "all_masked",
    "groups",
    "empty_experts",
    "one_gets_all",
    "no_tokens",
    "no_images",
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_backend_equals_loop(case, backend):
    """Every backend gives the loop's output and gradients, whatever the load."""
    layer, x, mask = layer_and_input(case)
    with vismoe.record(layer) as recording:
        expected = results(layer, x, mask, loop)
    count = recording.layers[""][0].plan.count.tolist()
    assert {
        "empty_experts": count[1] == count[3] == 0 < count[0],
        "one_gets_all": count == [0, 0, 21, 0, 0],
        "dropping": 0 < recording.layers[""][0].dropped_share < 1,
        "all_masked": sum(count) == 0,
        "no_tokens": sum(count) == 0,
        "no_images": sum(count) == 0,
    }.get(case, sum(count) > 0), count
    assert_same(results(layer, x, mask, BACKENDS[backend]), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", ["loop", *BACKENDS])
@pytest.mark.parametrize(("shape", "group_size"), [((2, 0, DIM), "none"), ((0, 7, DIM), "none"), ((0, 7, DIM), 7)])
def test_no_tokens_with_capacity(backend, shape, group_size):
    """A call of no tokens gives none back under a capacity and in groups too, forward and backward."""
    layer, _, _ = layer_and_input("dropping")
    layer.group_size = group_size
    found = results(layer, torch.randn(shape), None, BACKENDS.get(backend, loop))
    assert found["y"].shape == found["x"].shape == shape


@pytest.mark.parametrize("backend", ["loop", *BACKENDS])
def test_padding_reaches_nothing(backend):
    """Padding that is not even a number leaves outputs and all gradients as they are with zeros in its place."""
    layer, x, mask = layer_and_input("dropping_masked")
    found = []
    for value in (0.0, torch.nan):
        found.append(results(layer, torch.where(mask[..., None], x, value), mask, BACKENDS.get(backend, loop)))
    assert_same(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["grouped", "padded", "tiles4"])
def test_second_derivatives(backend):
    """Gradients have gradients, as penalties on them need: against finite differences in float64."""
    layer, x, mask = layer_and_input("dropping_masked")
    with vismoe.record(layer) as routing:  # The plan is held: a router works in float32, too coarse for differences.
        layer(x, mask)
    plan = routing.layers[""][0].plan
    experts = layer.experts.double()
    weight = plan.weight.detach().double()
    names = [name for name, _ in experts.named_parameters()]

    class Given(nn.Module):
        def __init__(self, parameters):
            super().__init__()
            self.given = dict(zip(names, parameters, strict=True))

        def forward(self, *arguments):
            return torch.func.functional_call(experts, self.given, arguments)

    def forward(x, weight, *parameters):
        weighted = dataclasses.replace(plan, weight=weight)
        rows = EXCHANGE.dispatch(weighted, x)
        return EXCHANGE.combine(weighted, rows, BACKENDS[backend](Given(parameters), rows))

    inputs = (x.flatten(0, 1).double(), weight, *(parameter.detach() for parameter in experts.parameters()))
    assert torch.autograd.gradgradcheck(forward, [each.requires_grad_() for each in inputs], fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["plain", "gated", "norm", "no_bias", "all"])
def test_every_form_of_expert(variant, backend):
    """Gated, normalised and bias-free experts give the loop's results in every backend, with every parameter of every
    expert its own."""
    layer, x, mask = layer_and_input("dropping")
    every = variant == "all"
    layer.experts = vismoe.MLPExperts(
        DIM,
        HIDDEN,
        EXPERTS,
        gated=every or variant == "gated",
        norm=every or variant == "norm",
        bias=not every and variant != "no_bias",
    )
    with torch.no_grad():
        for name, parameter in layer.experts.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 if name.startswith("norm") else 0.1)
    expected = results(layer, x, mask, loop)
    assert_same(results(layer, x, mask, BACKENDS[backend]), expected, rtol=1e-5, atol=2e-5)


def test_shared_is_added_to_every_live_token():
    """The shared module's output is added to each token once, dropped ones included, and padding stays 0."""
    layer, x, mask = layer_and_input("dropping_masked")
    without = layer(x, mask)
    layer.shared = nn.Linear(DIM, DIM)
    expected = torch.where(mask[..., None], without + layer.shared(x), 0)
    torch.testing.assert_close(layer(x, mask), expected)
    assert not layer(x, mask)[~mask].any()


@pytest.mark.parametrize("backend", ["loop", *BACKENDS])
def test_dropped_tokens_get_zero(backend):
    """A token that no expert keeps gets exactly 0 from the layer."""
    layer, x, _ = layer_and_input("dropping")
    layer.backend = BACKENDS.get(backend, loop)
    layer.router.k = 1
    with vismoe.record(layer) as recording:
        y = layer(x).flatten(0, 1)
    plan = recording.layers[""][0].plan
    live = torch.zeros(len(y), dtype=torch.bool)
    live[plan.token[: plan.count.sum()]] = True
    assert 0 < live.sum() < len(y)
    assert not y[~live].any()
    assert y[live].any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_product_runs_its_operator(monkeypatch, dtype):
    """The stand-in for a device really takes the device's path; in bfloat16 it agrees with the float32 loop as well as
    bfloat16 can (8 bits: 2^-8 relative a rounding, three roundings)."""
    calls, original = [], F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda *given, **named: calls.append(1) or original(*given, **named))
    layer, x, mask = layer_and_input("dropping_masked")
    layer.to(dtype)
    ours = results(layer, x.to(dtype), mask, device_product)
    assert len(calls) == 2
    assert ours["y"].dtype == dtype
    layer.float()
    expected = results(layer, x.to(dtype).float(), mask, loop)
    for name, value in expected.items():
        error = (ours[name].float() - value).norm() / value.norm()
        assert error < (1e-6 if dtype == torch.float32 else 3 * 2**-8), (name, error)


@pytest.mark.parametrize("backend", [grouped, padded])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity_factor", ["none", 1.05])
def test_nothing_waits_for_the_device(dtype, backend, capacity_factor):
    """On the meta device, where no value can be read, a training forward and backward run: so nothing in them waits
    for an accelerator."""
    with torch.device("meta"):
        router = vismoe.TopKRouter(
            DIM, EXPERTS, 2, noise_std=1.0, batch_priority=capacity_factor != "none", capacity_factor=capacity_factor
        )
        experts = vismoe.MLPExperts(DIM, HIDDEN, EXPERTS, gated=True, norm=True)
        layer = vismoe.MoE(router, experts, shared=nn.Linear(DIM, DIM), backend=backend).to(dtype)
        x = torch.randn(3, 7, DIM, dtype=dtype, requires_grad=True)
        mask = torch.ones(3, 7, dtype=torch.bool)
    with vismoe.record(layer) as recording:
        y = layer(x, mask)
    assert (y.shape, y.dtype, y.device.type) == (x.shape, dtype, "meta")
    assert recording.layers[""][0].load.shape == (EXPERTS,)
    (y.sum() + recording.auxiliary_loss).backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_is_deterministic(backend):
    """Two passes give the same bits, gradients too, under torch's own check that every operator is deterministic."""
    layer, x, mask = layer_and_input("dropping_masked")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (results(layer, x, mask, BACKENDS[backend]) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["loop", *BACKENDS])
def test_autocast_keeps_the_router_in_float32(backend):
    """Under bfloat16 autocast logits, gates and combine weights are those of float32, bit for bit; experts compute in
    bfloat16; gradients arrive in the parameters' type."""
    layer, x, mask = layer_and_input("dropping_masked")
    layer.backend = BACKENDS.get(backend, loop)
    with vismoe.record(layer) as recording:
        plain = layer(x, mask)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x, mask)
    without, under = recording.layers[""]
    assert under.routing.logits.dtype == torch.float32
    for name in ("logits", "gates"):
        assert torch.equal(getattr(under.routing, name), getattr(without.routing, name))
    assert torch.equal(under.plan.weight, without.plan.weight)
    assert 0 < (y - plain).norm() < 2**-6 * plain.norm()
    y.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


# torch's own check looks at the gradient of a tensor that has none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_grouped_linear_obeys_the_rules_of_operators():
    """The operator's schema, shape function and gradient registration hold (torch's own check), and its gradients are
    those of finite differences, for an empty expert and rows behind the last one too."""
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    count = torch.tensor([2, 0, 3, 1])
    for arguments in ((x, weight, bias, count), (x, weight, None, count)):
        torch.library.opcheck(grouped_linear, arguments)
        assert torch.autograd.gradcheck(grouped_linear, arguments)


def test_dispatch_and_combine_gradients():
    """The gradients of dispatch and combine, written by hand as gathers, are those of finite differences."""
    torch.manual_seed(0)
    tokens = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 4, 2, dtype=torch.float64, requires_grad=True)
    expert = torch.tensor([[[0, 2], [3, 0], [2, 3], [0, 1]]])  # 3 is no expert: dropped

    def weighted(tokens, weight):
        plan = plan_from_choices(expert, weight, 3)
        rows = EXCHANGE.dispatch(plan, tokens)
        return EXCHANGE.combine(plan, rows, rows.values**2)

    assert torch.autograd.gradcheck(weighted, (tokens, weight))
