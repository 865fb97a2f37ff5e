"""Compares distributed networks with the same networks in one process."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import vismoe
from vismoe.kernels import native, using_kernels
from vismoe.moe import grouped, loop, padded
from vismoe.moe.execution import compiled
from vismoe.parallel.gathering import gather_to_main
from vismoe.parallel.sharding import parallelize

IMAGES, CLASSES, TOKENS, DIM = 8, 5, 6, 16
TOLERANCE, NORM = 1e-6, 0.5
PRODUCTS = {"loop": loop, "grouped": grouped, "padded": padded, "without kernels": grouped}


@dataclass(frozen=True)
class Case:
    """One comparison.

    - `make`: makes the network.
    - `ep`, `replicate`, `static`, `mixed_precision`: see `parallelize`.
    - `product`: a key of PRODUCTS.
    - `bfloat16`: whether rows are exchanged in bfloat16.
    - `images`: number of images of each process; default: equally many.
    - `empty`: number of images at the end of a batch whose values are all 0.
    - `accumulate`: number of micro-batches of a step.
    - `steps`, `rate`: number of SGD steps, and learning rate.
    - `tolerance`: largest difference of losses and gradients at each step; None: they are not compared.
    - `weights`: largest difference of weights at the end.
    - `calls`: whether compiled kernels must be called or must not be; None: either.
    - `prepare`: called with each of both networks before training.
    - `ready`: called with the distributed network before training.
    - `warned`: what happens to warnings: "error" or "ignore".
    """

    make: Callable[[], nn.Module]
    ep: int = 2
    replicate: int = 1
    static: bool = False
    mixed_precision: Any = None
    product: str = "grouped"
    bfloat16: bool = False
    images: tuple[int, ...] = ()
    empty: int = 0
    accumulate: int = 1
    steps: int = 2
    rate: float = 0.1
    tolerance: float | None = TOLERANCE
    weights: float = 1e-6
    calls: bool | None = None
    prepare: Callable[[nn.Module], object] = lambda model: None
    ready: Callable[[nn.Module], object] = lambda model: None
    warned: Literal["error", "ignore"] = "error"


class Block(nn.Module):
    """A norm and a sparse layer, with a residual."""

    def __init__(self, moe: vismoe.MoE):
        super().__init__()
        self.norm, self.moe = nn.LayerNorm(DIM), moe

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.moe(self.norm(x), mask)


class Small(nn.Module):
    """Two blocks with a sparse layer each, of `vismoe.MoE` alone.

    **Arguments:**

    - `router`: makes a router of (DIM, number of experts).
    - `num_experts`: number of experts.
    - `experts`: makes experts of (DIM, hidden width, number of experts).
    - `recompute`: whether the blocks are recomputed in backward.
    - `masked`: whether tokens that are 0 are padding.
    - `autocast`: whether it runs in bfloat16.
    - `options`: of `vismoe.MoE`.
    """

    def __init__(
        self,
        router: Callable[..., nn.Module] = vismoe.TopKRouter,
        num_experts: int = 8,
        experts: Callable[..., nn.Module] = vismoe.MLPExperts,
        recompute: bool = False,
        masked: bool = False,
        autocast: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.embed = nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList(
            Block(vismoe.MoE(router(DIM, num_experts), experts(DIM, 12, num_experts), **options)) for _ in range(2)
        )
        self.head = nn.Linear(DIM, CLASSES)
        self.recompute, self.masked, self.autocast = recompute, masked, autocast

    def forward(self, x: Tensor) -> Tensor:
        mask = x.any(-1) if self.masked else None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.embed(x)
            for block in self.blocks:
                x = checkpoint(block, x, mask, use_reentrant=False) if self.recompute else block(x, mask)
            return self.head(x.mean(1))


def pico(num_experts: int = 8, **options: Any) -> nn.Module:
    """A small sparse network."""
    return vismoe.create_model(
        "vmoe_pico_patch2_8_every2_e8",
        num_classes=CLASSES,
        num_experts=num_experts,
        **{"embed_dim": 16, "depth": 2, "num_heads": 2, "moe_layers": "every-2"} | options,
    )


@contextlib.contextmanager
def processes(rank: int, folder: str, size: int) -> Iterator[None]:
    """The process group of a test."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=timedelta(seconds=300))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def counting_kernels(counts: list[int]) -> Iterator[None]:
    """Appends to `counts` the number of rows of each call of the compiled kernels."""
    plain = compiled.apply_experts

    def counted(experts: Any, tokens: Tensor, *others: Any) -> Any:
        counts.append(len(tokens))
        return plain(experts, tokens, *others)

    compiled.apply_experts = counted
    try:
        yield
    finally:
        compiled.apply_experts = plain


def check(cases: dict[str, Case]) -> None:
    """Runs all cases, then raises AssertionError for those that differ."""
    wrong = []
    for name, case in cases.items():
        try:
            wrong += [f"{name}: {what}" for what in differences(case)]
        except Exception as error:  # the other processes may wait for this one: no further case
            raise AssertionError(f"{name}: {error!r}") from error
    assert not wrong, "\n".join(wrong)


def differences(case: Case) -> list[str]:
    """What differs from one process, in words."""
    world = dist.get_world_size()
    alone, model = both(case)
    images = case.images or (IMAGES // world,) * world
    x, y = batch(sum(images), alone)
    x[len(x) - case.empty :] = 0
    optimizers = [torch.optim.SGD(network.parameters(), lr=case.rate) for network in (alone, model)]
    wrong: list[str] = []
    for step in range(case.steps):
        expected = alone_step(case, alone, x, y)
        calls: list[int] = []
        with counting_kernels(calls), kernels(case):
            loss = distributed_step(case, model, x, y, images)
        if case.tolerance is not None:
            if abs(loss - expected) > case.tolerance:
                wrong.append(f"step {step}: loss {loss}, expected {expected}")
            wrong += [f"step {step}: {what}" for what in compare_gradients(model, alone, case.tolerance)]
        norms = [
            clip(network.parameters(), NORM).item()
            for clip, network in ((nn.utils.clip_grad_norm_, alone), (vismoe.clip_grad_norm_, model))
        ]
        if case.tolerance is not None and abs(norms[1] - norms[0]) > case.tolerance * norms[0]:
            wrong.append(f"step {step}: norm {norms[1]}, expected {norms[0]}")
        if case.calls is not None and native() is not None and bool(calls) != case.calls:
            wrong.append(f"compiled kernels were called {len(calls)} times")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return wrong + compare_state(model, alone, case.weights)


def both(case: Case) -> tuple[nn.Module, nn.Module]:
    """The network of one process, and the distributed one, which starts from other weights in processes 1, 2, …"""
    networks = []
    for seed in (0, dist.get_rank()):
        torch.manual_seed(seed)
        network = case.make().train()
        for layer in layers(network):
            layer.product, layer.bfloat16_exchange = PRODUCTS[case.product], case.bfloat16
        case.prepare(network)
        networks.append(network)
    alone, model = networks
    parallelize(model, case.ep, case.replicate, case.static, case.mixed_precision)
    case.ready(model)
    return alone, model


def alone_step(case: Case, alone: nn.Module, x: Tensor, y: Tensor) -> float:
    """Forward and backward in one process. Returns the loss."""
    total = 0.0
    with warnings.catch_warnings():  # of a network that is not distributed, beside processes
        warnings.simplefilter("ignore")
        for part in range(case.accumulate):
            loss = batch_loss(alone, x[part :: case.accumulate], y[part :: case.accumulate], len(x))
            loss.backward()
            total += loss.item()
    return total


def distributed_step(case: Case, model: nn.Module, x: Tensor, y: Tensor, images: tuple[int, ...]) -> float:
    """Forward and backward with this process's share of each micro-batch. Returns the loss of all processes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = torch.zeros(len(x), dtype=torch.bool)
    mine[sum(images[:rank]) : sum(images[: rank + 1])] = True
    total = torch.zeros(())
    with warnings.catch_warnings():
        warnings.simplefilter(case.warned)
        for part in range(case.accumulate):
            if case.accumulate > 1:
                model.set_requires_gradient_sync(part == case.accumulate - 1)
            chosen = mine[part :: case.accumulate]
            shares = (tensor[part :: case.accumulate][chosen] for tensor in (x, y))
            loss = batch_loss(model, *shares, len(x)) * world  # gradients are averaged over processes
            loss.backward()
            total += loss.detach()
    dist.all_reduce(total)
    return total.item() / world


def layers(model: nn.Module) -> list[vismoe.MoE]:
    return [module for module in model.modules() if isinstance(module, vismoe.MoE)]


def kernels(case: Case) -> Any:
    """The context of a step: kernels are in use, except where the case says otherwise."""
    return using_kernels(None) if case.product == "without kernels" else contextlib.nullcontext()


def batch(images: int, model: nn.Module) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = model.pretrained_cfg["input_size"] if hasattr(model, "pretrained_cfg") else (TOKENS, DIM)
    return torch.randn(images, *size, generator=generator), torch.arange(images) % CLASSES


def batch_loss(model: nn.Module, x: Tensor, y: Tensor, images: int) -> Tensor:
    """The part of these images in the mean loss of all."""
    outputs = model(x)
    if isinstance(outputs, tuple):  # a detector's maps
        maps = outputs.centres, outputs.quality, outputs.boxes / outputs.boxes.shape[-1]
        squares = [value.float().square().flatten(1).mean(1).sum() for value in maps]
        return torch.stack(squares).sum() / images
    members = len(outputs) // len(y) if len(y) else 1
    return F.cross_entropy(outputs.float(), y.repeat_interleave(members), reduction="sum") / images / members


def compare_gradients(model: nn.Module, alone: nn.Module, tolerance: float) -> list[str]:
    """Gathers every gradient, and compares it with that of one process; in process 0."""
    given = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {name: parameter.grad for name, parameter in alone.named_parameters() if parameter.requires_grad}
    missing = [name for name, grad in given.items() if (grad is None) != (expected[name] is None)]
    if missing or given.keys() != expected.keys():
        return [f"gradients of {missing or given.keys() ^ expected.keys()}"]
    whole = gather_to_main({name: grad for name, grad in given.items() if grad is not None})
    return [
        f"gradient of {name} differs by {(grad - expected[name]).abs().max().item():.1e}"
        for name, grad in whole.items()
        if not torch.allclose(grad, expected[name], rtol=0, atol=tolerance)
    ]


def compare_state(model: nn.Module, alone: nn.Module, tolerance: float) -> list[str]:
    """Compares weights with those of one process, and buffers, which must be equal, bit for bit."""
    expected = alone.state_dict()
    whole = gather_to_main({name: tensor.detach() for name, tensor in model.named_parameters()})
    wrong = [
        f"{name} differs by {(tensor - expected[name]).abs().max().item():.1e}"
        for name, tensor in whole.items()
        if not torch.allclose(tensor, expected[name], rtol=0, atol=tolerance)
    ]
    buffers = dict(model.named_buffers())
    return wrong + [f"{name} differs" for name, buffer in buffers.items() if not torch.equal(buffer, expected[name])]
