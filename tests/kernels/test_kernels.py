"""Promise: compiled kernels give what the loop gives, for every instruction set of this processor, any sizes, any load;
forward, backward and packed."""

import copy
import threading
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vismoe
from vismoe.kernels import native, using_kernels
from vismoe.kernels.memory import uninitialized
from vismoe.moe import MLPExperts, Rows, grouped, loop
from vismoe.moe.experts.stacked import tanh_gelu

pytestmark = pytest.mark.skipif(native() is None, reason="vismoe was installed without compiled kernels")
ALL: list[str] = native().names() if native() is not None else []
NAMES = [name for name in ALL if name not in ("AVX512-BF16", "AMX")]
"""Those that differ in float32."""
ACTIVATIONS: dict[str, Any] = {
    "gelu_tanh": tanh_gelu,
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
}


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


def draw(experts: nn.Module) -> nn.Module:
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def outcome(product_: Any, experts: nn.Module, rows: Rows, grad: Tensor) -> list[Tensor]:
    """Answers of the live rows, and the gradients of rows and parameters."""
    values = rows.values.detach().requires_grad_()
    answers = product_(experts, Rows(values, rows.count, rows.bound))
    live = int(rows.count.sum())
    inputs = [values, *experts.parameters()]
    gradients = torch.autograd.grad((answers[:live] * grad[:live]).sum(), inputs)
    return [answers[:live].detach(), *gradients]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES or ["none"]),
    dim=st.integers(1, 70),
    hidden_dim=st.integers(1, 300),
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    dead=st.integers(0, 5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    gated=st.booleans(),
    bias=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_as_the_loop(
    name: str,
    dim: int,
    hidden_dim: int,
    counts: list[int],
    dead: int,
    activation: str,
    gated: bool,
    bias: bool,
    norm: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    number = sum(counts) + dead
    if norm:
        hidden_dim += 8  # a norm of few units is what is left when all cancels: rounding alone
    options: dict[str, Any] = {"gated": gated, "bias": bias, "norm": norm, "activation": ACTIVATIONS[activation]}
    experts = draw(MLPExperts(dim, hidden_dim, len(counts), **options, norm_eps=1e-3)).double()
    rows = Rows(torch.randn(number, dim).double(), torch.tensor(counts), number)
    grad = torch.randn(number, dim).double()
    expected = outcome(loop, experts, rows, grad)
    rows = Rows(rows.values.float(), rows.count, number)
    by_loop = outcome(loop, experts.float(), rows, grad.float())
    with using_kernels(name):
        found = outcome(grouped, experts, rows, grad.float())
    for value, other, reference in zip(found, by_loop, expected, strict=True):
        rounding = float(
            (other - reference).norm()
        )  # of float32: much where terms cancel, as behind a norm of one unit
        assert float((value - reference).norm()) <= 1e-5 * float(reference.norm()) + 4 * rounding + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "hidden_dim", "tokens"), [(64, 600, 500), (33, 77, 40), (128, 512, 36)])
def test_a_layer_in_evaluation_as_with_calls(name: str, dim: int, hidden_dim: int, tokens: int) -> None:
    torch.manual_seed(0)
    for k, sigmoid, kind in product((1, 2), (False, True), ({}, {"gated": True, "norm": True})):
        router = vismoe.SigmoidRouter if sigmoid else vismoe.TopKRouter
        combine: Any = "renormalized" if k == 2 else "gate"
        layer = vismoe.MoE(router(dim, 5, k=k, combine=combine), draw(MLPExperts(dim, hidden_dim, 5, **kind))).eval()
        assert isinstance(layer.router.balance_bias, Tensor)
        layer.router.balance_bias.normal_()
        x = torch.randn(2, tokens // 2, dim)
        with torch.no_grad():
            with using_kernels(None):
                expected = layer(x)
            with using_kernels(name):
                assert relative(layer(x), expected) < 1e-5
                assert relative(vismoe.optimize(layer)(x), expected) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"k": 1},
        {"k": 2},
        {"k": 3, "combine": "renormalized"},
        {"k": 1, "capacity_factor": 0.5},
        {"k": 2, "capacity_factor": 0.5},
    ],
    ids=["k1", "k2", "k3", "k1-drops", "k2-drops"],
)
def test_a_layer_in_training_as_with_calls(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    for kind, number in product(({}, {"gated": True, "norm": True, "bias": False}), (7, 600)):
        layer = vismoe.MoE(vismoe.TopKRouter(20, 5, balance="none", **options), draw(MLPExperts(20, 70, 5, **kind)))
        x, grad = torch.randn(1, number, 20, requires_grad=True), torch.randn(1, number, 20)
        mask = torch.rand(1, number) < 0.8

        def outcomes(layer: nn.Module, x: Tensor, grad: Tensor, mask: Tensor | None) -> list[Tensor]:
            y = layer(x, mask)
            return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)]

        for padding in (None, mask):
            with using_kernels(None):
                expected = outcomes(layer, x, grad, padding)
            with using_kernels(name):
                found = outcomes(layer, x, grad, padding)
            for value, reference in zip(found, expected, strict=True):
                assert float((value - reference).norm()) <= 1e-5 * float(reference.norm()) + 1e-5


def test_one_expert_hot_others_without_rows_or_with_one() -> None:
    torch.manual_seed(0)
    experts = draw(MLPExperts(48, 300, 5))
    rows = Rows(torch.randn(902, 48), torch.tensor([0, 900, 0, 1, 1]), 902)
    grad = torch.randn(902, 48)
    for value, reference in zip(outcome(grouped, experts, rows, grad), outcome(loop, experts, rows, grad), strict=True):
        assert relative(value, reference) < 1e-5


def test_threads_change_no_bit() -> None:
    torch.manual_seed(0)
    experts = draw(MLPExperts(48, 300, 5, norm=True, gated=True))
    rows = Rows(torch.randn(400, 48), torch.tensor([100, 250, 0, 30, 20]), 400)
    grad, threads = torch.randn(400, 48), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(outcome(grouped, experts, rows, grad))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_an_answer_does_not_depend_on_rows_beside_it() -> None:
    torch.manual_seed(0)
    layer = vismoe.optimize(vismoe.MoE(vismoe.TopKRouter(40, 4), draw(MLPExperts(40, 90, 4))))
    x = torch.randn(64, 5, 40)
    with torch.inference_mode():
        together = layer(x)
        assert all(torch.equal(layer(image[None])[0], answer) for image, answer in zip(x, together, strict=True))


def test_several_python_threads_at_once() -> None:
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.TopKRouter(64, 8), draw(MLPExperts(64, 128, 8))).eval()
    inputs = [torch.randn(2, 50, 64) for _ in range(4)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(100):
                if not torch.equal(layer(inputs[number]), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    experts = draw(MLPExperts(6, 9, 3, gated=True, norm=True))
    x = torch.randn(10, 6, requires_grad=True)

    def second(product_: Any) -> list[Tensor]:
        y = product_(experts, Rows(x, torch.tensor([4, 0, 5]), 10))[:9]
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), [x, *experts.parameters()], allow_unused=True))

    for value, reference in zip(second(grouped), second(loop), strict=True):
        if reference is not None:
            assert relative(value, reference) < 1e-4


def test_gradients_of_gradients_of_a_layer() -> None:
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.TopKRouter(6, 3, k=2, balance="none"), draw(MLPExperts(6, 9, 3)))
    x = torch.randn(1, 10, 6, requires_grad=True)

    def second() -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *layer.parameters()])

    with using_kernels(None):
        expected = second()
    for value, reference in zip(second(), expected, strict=True):
        assert relative(value, reference) < 1e-4


def test_large_memory_is_used_again_but_never_twice_at_once() -> None:
    shape = 700, 1000
    first, second = uninitialized(*shape), uninitialized(*shape)
    assert (first.shape, first.dtype) == (shape, torch.float32)
    first.fill_(1), second.fill_(2)
    assert bool((first == 1).all() & (second == 2).all())
    view, address = first[5], first.data_ptr()
    del first
    third = uninitialized(*shape)  # the view still holds the first one's memory
    assert third.data_ptr() not in (address, second.data_ptr())
    assert (view == 1).all()
    del view
    assert uninitialized(*shape).data_ptr() == address


def test_parameters_may_move_between_forward_and_backward() -> None:
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.TopKRouter(20, 3, balance="none"), draw(MLPExperts(20, 30, 3)))
    x = torch.randn(1, 50, 20)
    layer(x).sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    y = layer(x)
    for parameter in layer.parameters():
        parameter.data = parameter.data.clone()
    y.sum().backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)  # type: ignore[arg-type]


def test_defaults_of_other_types_and_devices_change_nothing() -> None:
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.TopKRouter(20, 3, balance="none"), draw(MLPExperts(20, 30, 3)))
    x = torch.randn(1, 50, 20)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            layer(x).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    found = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x).sum().backward()
    for parameter, grad in zip(layer.parameters(), found, strict=True):
        assert torch.equal(parameter.grad, grad)  # type: ignore[arg-type]


def test_only_wanted_gradients_are_computed() -> None:
    experts = draw(MLPExperts(8, 12, 2))
    experts.requires_grad_(False)
    assert isinstance(experts.down.bias, Tensor)
    experts.down.bias.requires_grad_(True)
    grouped(experts, Rows(torch.randn(5, 8), torch.tensor([2, 3]), 5)).sum().backward()
    assert [name for name, parameter in experts.named_parameters() if parameter.grad is not None] == ["down.bias"]
    assert torch.equal(experts.down.bias.grad, torch.tensor([2.0, 3.0])[:, None].expand(2, 8))


def test_nan_stays_in_its_row() -> None:
    torch.manual_seed(0)
    experts = draw(MLPExperts(8, 12, 2))
    x = torch.randn(30, 8)
    x[7] = torch.nan
    with torch.no_grad():
        answers = grouped(experts, Rows(x, torch.tensor([20, 10]), 30))
    assert answers[7].isnan().all()
    assert not answers[[*range(7), *range(8, 30)]].isnan().any()


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="accepted are"), using_kernels("SSE9"):
        pass


def test_kernels_are_named() -> None:
    with using_kernels("baseline"):
        assert vismoe.kernels_in_use() == "baseline"
    with using_kernels(None):
        assert vismoe.kernels_in_use().startswith("none")


def test_a_copy_of_a_packed_layer_has_weights_of_its_own() -> None:
    torch.manual_seed(0)
    layer = vismoe.optimize(vismoe.MoE(vismoe.TopKRouter(16, 3), draw(MLPExperts(16, 20, 3))))
    x = torch.randn(1, 9, 16)
    with torch.inference_mode():
        expected = layer(x)
        other = copy.deepcopy(layer)
        del layer
        assert torch.equal(other(x), expected)
