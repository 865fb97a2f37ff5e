"""Promise: on a CUDA device the layer computes what it does on a CPU, and a training step never waits for the device.

    python -m pytest -m cuda                                # on a machine with a device
    VISMOE_TEST_DEVICE=cpu python -m pytest -m cuda         # a dry run of the same tests

On the meta device a step that reads a value fails, as it would wait on a CUDA device: this is tested everywhere.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vismoe
from vismoe.moe import loop

DEVICE = os.environ.get("VISMOE_TEST_DEVICE", "cuda")
PICO = "vmoe_pico_patch2_8_every2_e8"
SIZE, HIDDEN, EXPERTS = 32, 48, 8

ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "k1": lambda: vismoe.TopKRouter(SIZE, EXPERTS),
    "k2": lambda: vismoe.TopKRouter(SIZE, EXPERTS, 2, combine="renormalized"),
    "dropping": lambda: vismoe.TopKRouter(SIZE, EXPERTS, 2, capacity_factor=0.6, batch_priority=True),
    "losses": lambda: vismoe.TopKRouter(SIZE, EXPERTS, 2, balance="loss", noise_std=1.0),
    "sigmoid": lambda: vismoe.SigmoidRouter(SIZE, EXPERTS, 2),
    "expert_choice": lambda: vismoe.ExpertChoiceRouter(SIZE, EXPERTS),
    "soft": lambda: vismoe.SoftRouter(SIZE, EXPERTS, 3),
}


def layer_of(router: str, **options: bool) -> vismoe.MoE:
    torch.manual_seed(0)
    return vismoe.MoE(ROUTERS[router](), vismoe.MLPExperts(SIZE, HIDDEN, EXPERTS, **options))  # type: ignore[arg-type]


def step(module: nn.Module, x: Tensor, context: nullcontext | torch.autocast) -> None:
    """Forward, backward, and the optimizer's update; losses of routers are added."""
    optimizer = torch.optim.AdamW(module.parameters())
    with vismoe.record(module) as routing, context:
        y = module(x)
    (y.float().square().mean() + routing.auxiliary_loss).backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("router", ROUTERS)
def test_a_step_reads_no_value(router: str, dtype: torch.dtype) -> None:
    step(layer_of(router).to("meta", dtype), torch.empty(2, 24, SIZE, device="meta", dtype=dtype), nullcontext())


def test_a_network_s_step_reads_no_value() -> None:
    network = vismoe.create_model(PICO).train().to("meta")
    step(network, torch.empty(2, *network.pretrained_cfg["input_size"], device="meta"), nullcontext())


def test_a_value_that_is_read_is_found() -> None:
    """What the two tests above rest on."""
    layer = layer_of("k1").to("meta")
    layer.product = loop
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta tensor"):
        step(layer, torch.empty(2, 24, SIZE, device="meta"), nullcontext())


@contextmanager
def no_waiting() -> Iterator[None]:
    """On a CUDA device, an error for whatever waits for it."""
    if DEVICE == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16)


on_device = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE != "cpu" and not torch.cuda.is_available(), reason="no CUDA device"),
]


class TestOnDevice:
    pytestmark = on_device

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("options", [{}, {"gated": True, "norm": True}, {"bias": False}], ids=str)
    @pytest.mark.parametrize("router", [name for name in ROUTERS if name != "losses"])
    def test_outputs_and_gradients(self, router: str, options: dict[str, bool], dtype: torch.dtype) -> None:
        """They are those of the plain loop on the CPU in float32; under autocast, to bfloat16's precision."""
        expected = layer_of(router, **options)
        expected.product = loop
        ours = copy.deepcopy(expected).to(DEVICE)
        ours.product = layer_of(router).product
        x, gradient = torch.randn(3, 24, SIZE), torch.randn(3, 24, SIZE)
        found: list[dict[str, Tensor]] = []
        for layer, place in ((expected, "cpu"), (ours, DEVICE)):
            tokens = x.to(place).requires_grad_()
            with autocast(dtype) if layer is ours else nullcontext():
                y = layer(tokens)
            y.backward(gradient.to(place, y.dtype))
            assert tokens.grad is not None
            gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
            found.append({"y": y.detach(), "x": tokens.grad, **gradients})
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            if value.numel() == 1 and dtype == torch.bfloat16:
                continue  # the gradient of a single number is a sum of roundings
            difference = (found[1][name].cpu().float() - value).norm() / value.norm().clamp_min(1e-3)
            assert difference < tolerance, name

    @pytest.mark.parametrize("masked", [False, True])
    def test_evaluation(self, masked: bool) -> None:
        layer = layer_of("k2").eval()
        x, mask = torch.randn(2, 24, SIZE), torch.ones(2, 24, dtype=torch.bool)
        mask[1, 7:] = not masked
        with torch.inference_mode():
            expected = layer(x, mask)
            y = layer.to(DEVICE)(x.to(DEVICE), mask.to(DEVICE)).cpu()
        assert torch.allclose(y, expected, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("router", ROUTERS)
    def test_a_step_never_waits(self, router: str, dtype: torch.dtype) -> None:
        layer, x = layer_of(router).to(DEVICE), torch.randn(2, 24, SIZE, device=DEVICE)
        step(layer, x, autocast(dtype))  # the first call loads kernels
        with no_waiting():
            step(layer, x, autocast(dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_network_learns(self, dtype: torch.dtype) -> None:
        """Its loss on one batch falls, and no step waits."""
        torch.manual_seed(0)
        network = vismoe.create_model(PICO, num_classes=4).train().to(DEVICE)
        images = torch.randn(16, *network.pretrained_cfg["input_size"], device=DEVICE)
        labels = torch.arange(16, device=DEVICE) % 4
        optimizer, losses = torch.optim.AdamW(network.parameters(), 3e-3), []
        for number in range(30):
            with no_waiting() if number else nullcontext():
                with autocast(dtype):
                    logits = network(images)
                loss = F.cross_entropy(logits.float(), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
        assert losses[-1].item() < 0.5 * losses[0].item()
