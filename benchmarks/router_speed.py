"""Compares the time of layers with a capacity and of soft routing with what they should save or cost.

    python benchmarks/router_speed.py           # both tables, one and two threads: two minutes of two idle cores

Layers in evaluation mode, in float32, with new inputs each time; all sides run in turn, and medians are compared.

- Batch Priority Routing: time with capacity factor 0.5 ÷ time with capacity factor 1. Half of the choices are dropped.
- Soft routing: time of the layer ÷ time of its products alone: logits, slots' inputs, experts and tokens' outputs,
  without normalising tokens and without softmax. Products are PyTorch's batched ones; or those of the experts are
  oneDNN's packed ones, one expert after the other. The faster of both counts.

Writes results/router_speed.csv.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from table import Table
from timing import Side, forward, medians, packed_mlp, processor, with_limit
from torch import Tensor, nn
from torch.nn import functional as F

import vismoe

RESULTS = Path(__file__).parent / "results" / "router_speed.csv"
HALF, SOFT = 0.62, 1.15
"""Largest accepted ratios."""


@dataclass(frozen=True)
class Case:
    """One layer. `slots`: slots of an expert in soft routing; 0: Batch Priority Routing with `k` experts per token.
    `limited`: whether the limits are for it."""

    images: int
    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int = 1
    slots: int = 0
    limited: bool = True


CAPACITY_CASES = (
    Case(1, 2048, 384, 1536, 8),
    Case(1, 2048, 384, 1536, 8, k=2),
    Case(1, 2048, 384, 1536, 64, limited=False),
    Case(1, 1152, 128, 512, 32, limited=False),
)
SOFT_CASES = (
    Case(1, 196, 384, 1536, 8, slots=24),
    Case(16, 196, 384, 1536, 8, slots=24),
    Case(16, 196, 384, 1536, 32, slots=6),
    Case(16, 36, 128, 512, 32, slots=1),
)


def capacity_layer(case: Case, factor: float) -> vismoe.MoE:
    torch.manual_seed(0)
    options: Any = {"batch_priority": True, "eval_capacity_factor": factor}
    router = vismoe.TopKRouter(case.dim, case.num_experts, case.k, **options)
    return vismoe.MoE(router, vismoe.MLPExperts(case.dim, case.hidden, case.num_experts)).eval()


class SoftProducts(nn.Module):
    """The products of a soft layer alone.

    **Arguments:** `layer`: the layer; `rows`: rows of each expert, for oneDNN's packed weights; 0: batched products.
    """

    def __init__(self, layer: vismoe.MoE, rows: int = 0):
        super().__init__()
        router: Any = layer.router
        experts: Any = layer.experts
        self.slots = router.weight.detach()
        self.num_experts = experts.num_experts
        self.up, self.up_bias = experts.up.weight.detach().mT.contiguous(), experts.up.bias.detach()[:, None]
        self.down, self.down_bias = experts.down.weight.detach().mT.contiguous(), experts.down.bias.detach()[:, None]
        self.packed = [packed_mlp(_dense(experts, number), rows) for number in range(self.num_experts) if rows]

    def forward(self, x: Tensor) -> Tensor:
        weights_GSn = F.linear(x, self.slots)
        groups, slots, dim = len(x), len(self.slots), x.shape[-1]
        inputs_Grd = (weights_GSn.mT @ x).view(groups, self.num_experts, -1, dim).transpose(0, 1)
        rows_Erd = inputs_Grd.reshape(self.num_experts, -1, dim)
        if self.packed:
            outputs_Erd = torch.stack([expert(rows) for expert, rows in zip(self.packed, rows_Erd, strict=True)])
        else:
            hidden_Erh = F.gelu(torch.baddbmm(self.up_bias, rows_Erd, self.up), approximate="tanh")
            outputs_Erd = torch.baddbmm(self.down_bias, hidden_Erh, self.down)
        outputs = outputs_Erd.view(self.num_experts, groups, -1, dim).transpose(0, 1).reshape(groups, slots, dim)
        y: Tensor = weights_GSn @ outputs
        return y


def _dense(experts: Any, number: int) -> nn.Sequential:
    """One expert as a dense MLP."""
    mlp = nn.Sequential(
        nn.Linear(experts.dim, experts.hidden_dim),
        nn.GELU(approximate="tanh"),
        nn.Linear(experts.hidden_dim, experts.dim),
    )
    state = {"0": experts.up, "2": experts.down}
    mlp.load_state_dict(
        {
            f"{place}.{name}": getattr(stack, name)[number]
            for place, stack in state.items()
            for name in ("weight", "bias")
        }
    )
    return mlp


def measure(case: Case) -> dict[str, float]:
    """Milliseconds by side."""
    if case.slots:
        torch.manual_seed(0)
        router = vismoe.SoftRouter(case.dim, case.num_experts, case.slots)
        layer = vismoe.MoE(router, vismoe.MLPExperts(case.dim, case.hidden, case.num_experts)).eval()
        modules = {"batched": SoftProducts(layer), "packed": SoftProducts(layer, case.images * case.slots)}
        modules |= {"optimized": vismoe.optimize(layer), "evaluation": layer}
    else:
        half, full = capacity_layer(case, 0.5), capacity_layer(case, 1.0)
        modules = {"half": half, "full": full}
        modules |= {"optimized_half": vismoe.optimize(half), "optimized_full": vismoe.optimize(full)}
    sides: dict[str, Side] = {name: (forward, module) for name, module in modules.items()}
    return medians(sides, lambda: torch.randn(case.images, case.tokens, case.dim))


def describe(case: Case) -> str:
    tokens = f"{case.tokens:,} tokens" if case.images == 1 else f"{case.images} × {case.tokens:,} tokens"
    choice = f"P={case.slots}" if case.slots else f"k={case.k}"
    return f"{tokens}, d={case.dim}, h={case.hidden}, E={case.num_experts}, {choice}"


def capacity_rows(threads: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    print("Batch Priority Routing, capacity factor 0.5 ÷ 1\n")
    print("| case | threads | optimized | evaluation mode |\n| --- | --- | --- | --- |")
    for case in CAPACITY_CASES:
        for count in threads:
            torch.set_num_threads(count)
            ms = measure(case)
            limit = HALF if case.limited else None
            cells = [with_limit(ms["optimized_half"] / ms["optimized_full"], limit)]
            cells += [with_limit(ms["half"] / ms["full"], limit)]
            print(f"| {describe(case)} | {count} | {' | '.join(cells)} |", flush=True)
            yield from rows_of(case, count, ms)
    print()


def soft_rows(threads: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    print("Soft routing ÷ its products alone\n")
    print("| case | threads | optimized | evaluation mode | batched ÷ packed |\n| --- | --- | --- | --- | --- |")
    for case in SOFT_CASES:
        for count in threads:
            torch.set_num_threads(count)
            ms = measure(case)
            products = min(ms["batched"], ms["packed"])
            cells = [with_limit(ms["optimized"] / products, SOFT if case.limited else None)]
            cells += [f"{ms['evaluation'] / products:.2f}", f"{ms['batched'] / ms['packed']:.2f}"]
            print(f"| {describe(case)} | {count} | {' | '.join(cells)} |", flush=True)
            yield from rows_of(case, count, ms)
    print()


def rows_of(case: Case, threads: int, ms: dict[str, float]) -> Iterator[dict[str, Any]]:
    shape = {name: value for name, value in asdict(case).items() if name != "limited"}
    for side, value in ms.items():
        yield shape | {"threads": threads, "side": side, "milliseconds": round(value, 4)}


def main(threads: tuple[int, ...] = (1, 2), out: Path = RESULTS) -> None:
    """Measure every case; print two tables and write the figures.

    Args:
        threads: Numbers of threads.
        out: File of the figures.
    """
    print(f"{processor()}; kernels: {vismoe.kernels_in_use()}; PyTorch {torch.__version__}\n")
    Table(out).write([*capacity_rows(threads), *soft_rows(threads)])


if __name__ == "__main__":
    tyro.cli(main)
