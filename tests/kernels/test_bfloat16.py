"""Promise: in bfloat16, compiled kernels are at least as close to float32 as PyTorch's own bfloat16."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import vismoe
from vismoe.kernels import PackedLinear, native, using_kernels


def kernels_with_bfloat16() -> list[str]:
    found = []
    for name in native().names() if native() is not None else []:
        with using_kernels(name):
            if native().has_bfloat16():
                found.append(name)
    return found


NAMES = kernels_with_bfloat16()
pytestmark = pytest.mark.skipif(not NAMES, reason="no compiled kernels of this processor multiply bfloat16")


def distance(value: Tensor, expected: Tensor) -> float:
    return float((value.float() - expected).norm() / expected.norm())


def draw(layer: nn.Module) -> nn.Module:
    """Weights that bfloat16 has, so that only products and activations are rounded."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
        parameter.data = parameter.data.bfloat16().float()
    return layer


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(NAMES or ["none"]),
    dim=st.integers(8, 80),
    hidden_dim=st.integers(16, 200),
    tokens=st.integers(1, 150),
    num_experts=st.integers(1, 6),
    k=st.integers(1, 2),
    options=st.fixed_dictionaries({"gated": st.booleans(), "bias": st.booleans(), "norm": st.booleans()}),
    activation=st.sampled_from([nn.functional.gelu, nn.functional.relu, nn.functional.silu]),
    seed=st.integers(0, 1000),
)
def test_a_layer(
    name: str,
    dim: int,
    hidden_dim: int,
    tokens: int,
    num_experts: int,
    k: int,
    options: dict[str, bool],
    activation: Any,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    experts = vismoe.MLPExperts(dim, hidden_dim, num_experts, activation=activation, **options)
    layer = vismoe.MoE(vismoe.TopKRouter(dim, num_experts, k=min(k, num_experts)), draw(experts)).eval()
    x = torch.randn(1, tokens, dim).bfloat16()
    with torch.inference_mode():
        with using_kernels(None):
            expected = layer(x.float())
            torchs = copy.deepcopy(layer)
            torchs.experts.bfloat16()
            allowed = distance(torchs(x), expected)
        with using_kernels(name):
            found = vismoe.optimize(layer, dtype="bfloat16")(x.float())
    assert found.dtype == torch.float32
    assert distance(found, expected) <= 1.1 * allowed + 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "dim", "out"), [(1, 7, 5), (33, 48, 100), (300, 100, 33)])
def test_a_linear_layer(name: str, rows: int, dim: int, out: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(out, dim).bfloat16().float(), torch.randn(out)
    x = torch.randn(2, rows, dim).bfloat16()
    expected = x.float() @ weight.T + bias
    with using_kernels(name), torch.inference_mode():
        found = PackedLinear(weight, bias, dtype=torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    assert distance(found, expected) < 2**-8


@pytest.mark.parametrize("name", NAMES)
def test_networks_and_their_features(name: str) -> None:
    torch.manual_seed(0)
    for options in ({}, {"router": "soft"}, {"capacity_factor": 0.5, "batch_priority": True}, {"experts_per_token": 2}):
        model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **options).eval()
        nn.init.normal_(model.get_submodule("head").weight)  # type: ignore[arg-type]
        x = torch.randn(3, *model.pretrained_cfg["input_size"])  # type: ignore[index]
        with torch.inference_mode(), using_kernels(name):
            expected, found = model(x), vismoe.optimize(model, dtype=torch.bfloat16)(x)
        assert found.dtype == torch.float32
        assert distance(found, expected) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_no_bit_and_nan_stays_in_its_row(name: str) -> None:
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.TopKRouter(48, 4), draw(vismoe.MLPExperts(48, 100, 4))).eval()
    x, threads = torch.randn(1, 300, 48), torch.get_num_threads()
    x[0, 7] = torch.nan
    found = []
    with using_kernels(name), torch.inference_mode():
        optimized = vismoe.optimize(layer, dtype="bfloat16")
        try:
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                found.append(optimized(x))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(found[0].nan_to_num(9), other.nan_to_num(9)) for other in found[1:])
    assert found[0].isnan().any(-1).nonzero().tolist() == [[0, 7]]


def test_a_predictor() -> None:
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=5).eval()
    images = [Image.effect_noise((8, 8), 60).convert("RGB") for _ in range(3)]
    with using_kernels(NAMES[-1]):
        exact = vismoe.Predictor(model).predict(images)
        found = vismoe.Predictor(copy.deepcopy(model), optimized=True, dtype="bfloat16").predict(images)
    for one, other in zip(exact, found, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=0.01)
    with pytest.raises(ValueError, match=r"dtype='bfloat16' is for networks that .*: this one is not optimized"):
        vismoe.Predictor(model, dtype="bfloat16")


def test_another_type_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be converted to torch\.float32"):
        vismoe.optimize(nn.Sequential(nn.Linear(3, 4)), dtype="bfloat16").float()


def test_a_gradient_is_refused() -> None:
    layer = vismoe.MoE(vismoe.TopKRouter(8, 2), vismoe.MLPExperts(8, 8, 2))
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(RuntimeError, match="has no gradients"):
            vismoe.optimize(layer, dtype=dtype)(torch.randn(1, 3, 8, requires_grad=True))


def test_kernels_without_bfloat16_refuse_it() -> None:
    with using_kernels("baseline"), pytest.raises(ValueError, match="needs a processor with AVX512-BF16 or AMX"):
        vismoe.optimize(nn.Linear(3, 4), dtype="bfloat16")
