"""pytest tests/parallel/test_equality.py: a distributed network does what one process does: losses, gradients, clipped
norms, weights and balancing biases."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

import vismoe
from vismoe.detection import make_detector

from ..ranks import in_processes
from .equality import CLASSES, IMAGES, PRODUCTS, TOKENS, Case, Small, check, layers, pico, processes

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


def test_equal_to_one_process(tmp_path: Path):
    """Two processes, one case of each kind: loss, every gradient and the clipped norm within 1e-6, then weights, and
    balancing biases and counts bit-equal in every process."""
    in_processes(2, compare, str(tmp_path), "2", "fast")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "ep"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_every_combination_is_equal_to_one_process(size, ep, tmp_path):
    """Every router but the random one, every product, ragged and static, k 1 and 2, and what a loop may do."""
    in_processes(size, compare, str(tmp_path), str(size), str(ep))
