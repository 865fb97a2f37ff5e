"""Promise: `vismoe.optimize` gives the same outputs, says what it leaves, and refuses what its form cannot do."""

import weakref
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vismoe
from vismoe.features.features import classifiers
from vismoe.kernels import PackedLinear, native, using_kernels

pytestmark = pytest.mark.skipif(native() is None, reason="vismoe was installed without compiled kernels")
SPARSE = "vmoe_pico_patch2_8_every2_e8"


def sparse(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = vismoe.create_model(SPARSE, **options).eval()
    nn.init.normal_(model.get_submodule("head").weight)  # type: ignore[arg-type]
    return model


def images(model: nn.Module) -> torch.Tensor:
    return torch.randn(3, *model.pretrained_cfg["input_size"])  # type: ignore[index]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"router": "soft"},
        {"router": "expert-choice", "capacity_factor": 1.0},
        {"capacity_factor": 0.5, "batch_priority": True},
        {"experts_per_token": 2},
    ],
)
def test_the_same_outputs(options: dict[str, object]) -> None:
    model = sparse(**options)
    x = images(model)
    with torch.inference_mode():
        expected = model(x)
        found = vismoe.optimize(model)(x)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_100", "mixer_s32_224"])
def test_networks_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = model(x)
        optimized = vismoe.optimize(model)
        assert (optimized(x) - expected).norm() <= 1e-5 * expected.norm()
    assert any(isinstance(module, PackedLinear) for module in optimized.modules())


def test_weights_that_are_read_and_not_called() -> None:
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", num_classes=5, embed_dim=48, depth=2, num_heads=4).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = model(x)
        assert (vismoe.optimize(model)(x) - expected).norm() <= 1e-5 * expected.norm()
    for rows, columns in ((5, 7), (33, 40)):
        weight = torch.randn(rows, columns)
        assert torch.equal(PackedLinear(weight, None).weight, weight)


def test_features_are_those_before_the_classifier() -> None:
    optimized = vismoe.optimize(sparse())
    assert classifiers(optimized) == [optimized.get_submodule("head")]


def test_torchs_attention_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 3)).eval()
    x = torch.randn(2, 7, 32)
    with torch.inference_mode():
        expected = model(x)
        assert (vismoe.optimize(model)(x) - expected).norm() <= 1e-5 * expected.norm()


def test_a_copy_by_default_and_the_model_itself_in_place() -> None:
    model = sparse().train()
    optimized = vismoe.optimize(model)
    assert model.training
    assert not optimized.training
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert vismoe.optimize(model, inplace=True) is model
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    assert not any("experts" in name for name, _ in model.named_parameters())


def test_in_place_no_second_copy_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight of a linear layer is gone before the next but one is packed."""
    model = vismoe.create_model("vmoe_pico_patch2_8_dense")
    weights = [weakref.ref(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)]
    alive: list[int] = []
    build = PackedLinear.__init__

    def counting(self: PackedLinear, *arguments: Any) -> None:
        alive.append(sum(weight() is not None for weight in weights))
        build(self, *arguments)

    monkeypatch.setattr(PackedLinear, "__init__", counting)
    vismoe.optimize(model, inplace=True)
    assert len(alive) == len(weights)
    assert all(left <= len(weights) - done + 1 for done, left in enumerate(alive))


def test_what_the_form_cannot_do_is_refused() -> None:
    model = sparse()
    state, optimized = model.state_dict(), vismoe.optimize(model)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        optimized.train()
    with pytest.raises(RuntimeError, match="cannot be saved"):
        optimized.state_dict()
    with pytest.raises(RuntimeError, match="cannot be loaded into"):
        optimized.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"cannot be converted to torch\.float64"):
        vismoe.optimize(nn.Sequential(nn.Linear(3, 4))).double()
    with pytest.raises(ValueError, match=r"x of shape \(8, 5\) on cpu: expected \(…, 3\)"):
        vismoe.optimize(nn.Sequential(nn.Linear(3, 4)))(torch.randn(8, 5))
    for name in [None] + ["baseline"] * (len(native().names()) > 1):
        with using_kernels(name), pytest.raises(RuntimeError, match="cannot read weights that others packed"):
            optimized(images(model))
    with pytest.raises(ValueError, match="is optimized already"):
        vismoe.optimize(optimized)
    with pytest.raises(ValueError, match="accepted are float32 and bfloat16"):
        vismoe.optimize(model, dtype="int8")
    with pytest.raises(RuntimeError, match="given hooks"):
        next(layer for layer in optimized.modules() if isinstance(layer, vismoe.MoE)).experts.register_forward_hook(
            lambda *inputs: None
        )
    with pytest.raises(ValueError, match=r"0 \(Linear\) has bias in torch.float64"):
        vismoe.optimize(nn.Sequential(nn.Linear(3, 4)).double())
    with pytest.raises(ValueError, match=r"0 \(Linear\) has bias on meta"):
        vismoe.optimize(nn.Sequential(nn.Linear(3, 4, device="meta")))


def test_an_adapter_is_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(sparse(), peft.LoraConfig(r=2, target_modules=["qkv"]))
    with pytest.raises(ValueError, match=r"has an adapter|has hooks"):
        vismoe.optimize(model)


def test_experts_without_a_kernel_are_said() -> None:
    layer = vismoe.MoE(vismoe.TopKRouter(8, 2), vismoe.MLPExperts(8, 8, 2, activation=torch.tanh)).eval()
    x = torch.randn(1, 4, 8)
    with pytest.warns(UserWarning, match="are not packed"):
        optimized = vismoe.optimize(layer)
    with torch.inference_mode():
        assert torch.equal(optimized(x), layer(x))


def test_without_kernels_a_warning_says_that_nothing_changes() -> None:
    model = sparse()
    x = images(model)
    with using_kernels(None), pytest.warns(UserWarning, match="optimize changes nothing"):
        optimized = vismoe.optimize(model)
    with torch.inference_mode(), using_kernels(None):
        assert torch.equal(optimized(x), model(x))
