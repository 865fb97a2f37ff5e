"""Promise: kernels stand for the call of an expert only where the call does nothing else, and both paths agree."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import vismoe
from vismoe.kernels import native, using_kernels
from vismoe.moe import MLPExperts, StackedLinear
from vismoe.moe.execution.compiled import compiled_layer, expert_tensors

pytestmark = pytest.mark.skipif(native() is None, reason="vismoe was installed without compiled kernels")


def layer() -> vismoe.MoE:
    torch.manual_seed(0)
    made = vismoe.MoE(vismoe.TopKRouter(16, 4), MLPExperts(16, 24, 4)).eval()
    for parameter in made.experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class OtherLinear(StackedLinear):
    pass


def _patch_forward(made: vismoe.MoE) -> None:
    up: Any = made.experts.up
    forward = up.forward
    up.forward = lambda *inputs: 2 * forward(*inputs)


def _replace_class(made: vismoe.MoE) -> None:
    made.experts.up.__class__ = OtherLinear


CHANGES: dict[str, Callable[[vismoe.MoE], Any]] = {
    "hook": lambda made: made.experts.up.register_forward_hook(lambda module, inputs, output: 2 * output),
    "hook before": lambda made: made.experts.down.register_forward_pre_hook(lambda module, inputs: None),
    "hook on all experts": lambda made: made.experts.register_forward_hook(lambda module, inputs, output: 3 * output),
    "backward hook": lambda made: made.experts.up.register_full_backward_hook(lambda module, grads, outs: None),
    "parametrization": lambda made: parametrize.register_parametrization(made.experts.up, "weight", Doubled()),
    "pruning": lambda made: prune.l1_unstructured(made.experts.up, "weight", amount=0.5),
    "patched forward": _patch_forward,
    "subclass": _replace_class,
}


@pytest.mark.parametrize("change", CHANGES)
def test_experts_with_something_attached_are_called(change: str) -> None:
    made, x = layer(), torch.randn(2, 9, 16)
    assert expert_tensors(made.experts) is not None
    CHANGES[change](made)
    assert expert_tensors(made.experts) is None
    with torch.no_grad():
        found = made(x)
        with using_kernels(None):
            assert torch.equal(found, made(x))


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "subclass"])
def test_optimize_refuses_them_by_name(change: str) -> None:
    made = layer()
    CHANGES[change](made)
    with pytest.raises(ValueError, match=r"experts.*\((StackedLinear|MLPExperts|ParametrizedStackedLinear)\) has"):
        vismoe.optimize(made)


def test_a_global_hook_sees_experts() -> None:
    made, seen = layer(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    try:
        with torch.no_grad():
            made(torch.randn(1, 5, 16))
    finally:
        handle.remove()
    assert StackedLinear in seen


def test_types_devices_and_modes_without_kernels() -> None:
    made, x = layer(), torch.randn(9, 16)
    with torch.no_grad():
        assert compiled_layer(made.router, made.experts, x) is not None
        assert compiled_layer(made.router.train(), made.experts, x) is None
        made.router.eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert compiled_layer(made.router, made.experts, x) is None
        assert compiled_layer(made.router, made.experts, x.double()) is None
        assert compiled_layer(made.router, made.experts, x.to("meta")) is None
    assert compiled_layer(made.router, made.experts, x) is None  # a gradient may be wanted


def test_routing_is_recorded_and_the_answer_is_the_same() -> None:
    made, x = layer(), torch.randn(2, 9, 16)
    with torch.no_grad():
        expected = made(x)
        with vismoe.record(made) as routing:
            found = made(x)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert int(routing.layers[""][0].load.sum()) == 18


def test_capacity_masks_and_shared_modules() -> None:
    torch.manual_seed(0)
    router = vismoe.TopKRouter(16, 4, capacity_factor=0.5)
    shared = vismoe.MoE(vismoe.TopKRouter(16, 4), MLPExperts(16, 24, 4), shared=nn.Linear(16, 16)).eval()
    dropping = vismoe.MoE(router, MLPExperts(16, 24, 4)).eval()
    x, mask = torch.randn(2, 9, 16), torch.rand(2, 9) < 0.7
    with torch.no_grad():
        for call in (lambda: shared(x), lambda: dropping(x), lambda: shared(x, mask), lambda: shared(x[0])):
            found = call()
            with using_kernels(None):
                expected = call()
            assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_environment_turns_kernels_off_or_selects_some(forked: Path) -> None:
    def run(selected: str) -> subprocess.CompletedProcess[str]:
        code = "import importlib, vismoe.kernels.selection as s; print(importlib.reload(s).kernels_in_use())"
        env = os.environ | {"VISMOE_KERNELS": selected}
        return subprocess.run([forked, "-c", code], capture_output=True, text=True, env=env, check=False)

    assert run("0").stdout == "none (VISMOE_KERNELS=0)\n"
    assert run("baseline").stdout == "baseline\n"
    assert "VISMOE_KERNELS=SSE9: accepted on this processor are 0, baseline" in run("SSE9").stderr
