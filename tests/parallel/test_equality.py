"""pytest tests/parallel/test_equality.py: a distributed network does what one process does: losses, gradients, clipped
norms, weights and balancing biases."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

import vismoe
from vismoe.detection import make_detector
from vismoe.parallel.sharding import parallelize

from ..ranks import in_processes
from .equality import (
    CLASSES,
    IMAGES,
    PRODUCTS,
    TOKENS,
    Case,
    Small,
    batch,
    check,
    compare_state,
    layers,
    pico,
    processes,
)

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)
ROUTERS: dict[str, Callable[..., nn.Module]] = {
    "top-k": vismoe.TopKRouter,
    "top-2": partial(vismoe.TopKRouter, k=2),
    "sigmoid": partial(vismoe.SigmoidRouter, k=2),
    "image": vismoe.ImageRouter,
    "expert-choice": vismoe.ExpertChoiceRouter,
    "soft": partial(vismoe.SoftRouter, slots_per_expert=2),
    "hash": vismoe.HashRouter,
}


def capacity(world: int, k: int = 1) -> Callable[[], nn.Module]:
    """A network that drops rows, with a group for each process's images."""
    router = partial(vismoe.TopKRouter, k=k, capacity_factor=0.7, batch_priority=True)
    return partial(Small, router, group_size=IMAGES // world * TOKENS)


def onto_one_expert(model: nn.Module) -> None:
    for layer in layers(model):
        layer.router.balance_bias.fill_(-100)
        layer.router.balance_bias[3] = 0


def upcycled(**options: Any) -> nn.Module:
    """A network of timm's with sparse layers."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    parent = vismoe.create_model("timm:vit_tiny_patch16_224", num_classes=CLASSES, **sizes)
    return vismoe.upcycle(parent, num_experts=4, moe_layers=[1], **options)


def detector() -> nn.Module:
    return make_detector(pico(global_pool="avg", class_token=False), 3, (8, 8))


def fast(world: int) -> dict[str, Case]:
    """One case of each kind."""
    bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    top_2 = partial(Small, ROUTERS["top-2"])
    return {
        "ragged": Case(top_2, calls=True, steps=3),
        "static, capacity": Case(capacity(world), static=True, calls=True),
        "experts in every process": Case(top_2, ep=1, calls=True),
        "copies": Case(top_2, ep=1, replicate=2),
        "soft": Case(partial(Small, ROUTERS["soft"])),
        "expert choice": Case(partial(Small, ROUTERS["expert-choice"])),
        "bfloat16": Case(Small, bfloat16=True),
        "all rows on one expert": Case(Small, prepare=onto_one_expert, steps=1),
        "a process without images": Case(Small, images=(IMAGES,) + (0,) * (world - 1)),
        "a process of padding alone": Case(partial(Small, masked=True), static=True, empty=IMAGES // world),
        "recompute": Case(partial(Small, recompute=True)),
        "accumulation": Case(partial(Small, group_size=TOKENS), accumulate=2),
        "mixed precision": Case(Small, mixed_precision=bf16, tolerance=0.03, weights=0.03, steps=1),
        "of timm": Case(pico, static=True, steps=1, prepare=lambda model: model.set_grad_checkpointing()),
    }


def full(world: int, ep: int) -> dict[str, Case]:
    """Every combination."""
    cases, both = {}, ((False, "ragged"), (True, "static"))
    for static, form in both:
        for name, router in ROUTERS.items():
            cases[f"{name}, {form}"] = Case(partial(Small, router), ep, static=static)
        for name in PRODUCTS:
            for k in (1, 2):
                make, calls = partial(Small, partial(vismoe.TopKRouter, k=k)), name == "grouped"
                cases[f"{name}, k={k}, {form}"] = Case(make, ep, static=static, product=name, calls=calls, steps=1)
        for k in (1, 2):
            cases[f"capacity, k={k}, {form}"] = Case(capacity(world, k), ep, static=static)
        cases |= {
            f"bfloat16, {form}": Case(Small, ep, static=static, bfloat16=True),
            f"all rows on one expert, {form}": Case(Small, ep, static=static, prepare=onto_one_expert, steps=1),
            f"a process of padding alone, {form}": Case(
                partial(Small, masked=True), ep, static=static, empty=IMAGES // world
            ),
            f"autocast, {form}": Case(
                partial(Small, autocast=True), ep, static=static, tolerance=0.03, weights=0.03, steps=1
            ),
            f"recompute, {form}": Case(partial(Small, recompute=True), ep, static=static),
            f"accumulation, {form}": Case(partial(Small, group_size=TOKENS), ep, static=static, accumulate=2),
            f"gated experts with norms, {form}": Case(
                partial(Small, experts=partial(vismoe.MLPExperts, gated=True, norm=True)), ep, static=static
            ),
            f"twenty steps, {form}": Case(
                partial(Small, ROUTERS["top-2"]), ep, static=static, steps=20, tolerance=None, weights=1e-5
            ),
            f"mixed precision, {form}": Case(
                Small,
                ep,
                static=static,
                mixed_precision=MixedPrecisionPolicy(torch.bfloat16, torch.float32),
                tolerance=0.03,
                weights=0.03,
                steps=1,
            ),
            f"ensemble, {form}": Case(partial(pico, ensemble_size=2), ep, static=static),
            f"recompute by timm, {form}": Case(
                pico, ep, static=static, prepare=lambda model: model.set_grad_checkpointing()
            ),
            f"upcycled, {form}": Case(upcycled, ep, static=static),
            f"low-rank, {form}": Case(partial(upcycled, experts="low-rank", rank=2), ep, static=static),
            f"shared expert, {form}": Case(partial(pico, shared=True), ep, static=static),
            f"detector, {form}": Case(detector, ep, static=static),
        }
    cases["a process without images"] = Case(Small, ep, images=(IMAGES,) + (0,) * (world - 1))
    cases["unequal shares"] = Case(Small, ep, images=(5,) + (3,) * (world - 1))
    if world // ep > 1:
        for name, case in list(cases.items()):
            if name.startswith(("top-2", "soft", "recompute", "accumulation", "capacity")):
                cases[f"{name}, copies"] = Case(**vars(case) | {"replicate": 2})
    return cases


def compare(rank: int, folder: str, size: str, which: str) -> None:
    """A process of the tests below. `which`: "fast", or the number of processes that share experts."""
    with processes(rank, folder, int(size)):
        check(fast(int(size)) if which == "fast" else full(int(size), int(which)))
        average(2 if which == "fast" else int(which))


def average(ep: int) -> None:
    """An EMA made before both networks are distributed is the EMA of one process."""
    alone, model = (pico() for _ in range(2))
    model.load_state_dict(alone.state_dict())
    averages = [ModelEmaV3(network, decay=0.7, foreach=False) for network in (alone, model)]
    for network in (model, averages[1].module):
        parallelize(network, ep)
    for step in range(3):
        with torch.no_grad():
            for network in (alone, model):
                for number, parameter in enumerate(network.parameters()):
                    parameter.add_(0.01 * (number % 3 - step))
                for layer in layers(network):
                    layer.router.balance_bias.add_(step)
        for network, ema in zip((alone, model), averages, strict=True):
            ema.update(network)
    wrong = compare_state(averages[1].module, averages[0].module, 1e-6)
    assert not wrong, wrong
    x, _ = batch(2, alone)
    with torch.no_grad():
        torch.testing.assert_close(averages[1].module(x), averages[0].module(x), rtol=0, atol=1e-5)


def test_equal_to_one_process(tmp_path: Path):
    """Two processes, one case of each kind: loss, every gradient and the clipped norm within 1e-6, then weights, and
    balancing biases and counts bit-equal in every process; the EMA."""
    in_processes(2, compare, str(tmp_path), "2", "fast")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "ep"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_every_combination_is_equal_to_one_process(size, ep, tmp_path):
    """Every router but the random one, every product, ragged and static, k 1 and 2, and what a loop may do."""
    in_processes(size, compare, str(tmp_path), str(size), str(ep))


def compiled(rank: int, folder: str) -> None:
    """A process of the test below."""

    def compile_layers(model: nn.Module) -> None:
        for layer in layers(model):
            layer.compile(fullgraph=True, backend="aot_eager")

    with processes(rank, folder, 2):
        for static in (False, True):
            torch._dynamo.reset()
            torch._dynamo.config.capture_scalar_outputs = not static  # numbers of rows are read
            torch._dynamo.config.error_on_recompile = True
            case = Case(partial(Small, ROUTERS["top-2"]), static=static, ready=compile_layers, warned="ignore", steps=3)
            check({f"static={static}": case})


@pytest.mark.slow
def test_layers_compile_without_a_graph_break(tmp_path: Path):
    """With either exchange, and other numbers of rows in the next step compile nothing again."""
    in_processes(2, compiled, str(tmp_path))


@pytest.mark.parametrize(("ep", "replicate"), [(1, 1), (8, 1), (32, 1), (8, 2)])
def test_a_process_has_its_share_of_the_parameters(ep, replicate):
    """Of 64 processes, each has at most a 64th of all parameters (of half of them, if there are two copies) and 1 %
    more for what does not divide."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=64)
    try:
        with torch.device("meta"):
            model = vismoe.create_model("vmoe_s32_every2_e32")
        whole = sum(parameter.numel() for parameter in model.parameters())
        parallelize(model, ep, replicate)
        own = sum(parameter.to_local().numel() for parameter in model.parameters())
        assert sum(parameter.numel() for parameter in model.parameters()) == whole
        assert own <= 1.01 * whole * replicate / 64
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ep": 3}, "ep=3, replicate=1: 3 must divide the number of processes, which is 4"),
        ({"ep": 2, "replicate": 4}, "8 must divide the number of processes, which is 4"),
        ({"ep": 0}, "ep=0: accepted are numbers of processes ≥ 1"),
        ({"ep": 4}, "ep=4 does not divide the 6 experts of blocks.0.moe: accepted are 1, 2, 3, 6"),
    ],
)
def test_numbers_that_do_not_divide(options, message):
    """The error names the layer, what was given and what is accepted."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=4)
    try:
        with pytest.raises(ValueError, match=message):
            parallelize(Small(num_experts=6), **options)
    finally:
        dist.destroy_process_group()


def test_nothing_to_distribute_over(monkeypatch):
    """Without processes the error says how to start them."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="start the program with torchrun"):
        parallelize(Small())
