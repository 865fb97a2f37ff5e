"""Compares the time of the sparse layer with that of a dense MLP with the same MACs.

    python benchmarks/layer_speed.py             # every case, one and two threads: some minutes of two idle cores

On a CPU, in float32, with new inputs each time; all sides run in turn, and medians are compared. "Packed" is the dense
MLP as oneDNN runs it with packed weights and fused GELU, "plain" as PyTorch runs it. The table has four ratios: the
layer that `vismoe.optimize` makes ÷ packed; the layer in evaluation mode ÷ the optimized one; forward and backward ÷
plain; plain ÷ packed. Where the processor multiplies bfloat16, a fifth: optimized ÷ packed, both in bfloat16. Writes
results/layer_speed.csv. For a CUDA device there is benchmarks/cuda_device.py.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from table import Table
from timing import SECONDS, Side, forward, medians, packed_mlp, processor, with_limit
from torch import Tensor, nn

import vismoe
from vismoe.kernels import native

RESULTS = Path(__file__).parent / "results" / "layer_speed.csv"


@dataclass(frozen=True)
class Case:
    """One case. Limits: largest accepted optimized ÷ packed, evaluation mode ÷ optimized, forward + backward ÷ plain,
    optimized ÷ packed in bfloat16; `skewed`: half of the tokens go to one expert."""

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int
    optimized: float | None = None
    evaluation: float | None = None
    training: float | None = None
    bfloat16: float | None = None
    skewed: bool = False


CASES = (
    Case(2048, 384, 1536, 8, 1, 1.15, 1.5, 1.0, 1.25),
    Case(2048, 384, 1536, 8, 2, 1.15, 1.5, 1.0),
    Case(2048, 384, 1536, 32, 1),
    Case(2048, 384, 1536, 64, 1, 1.7, 1.6, 1.5, 1.9),
    Case(3136, 192, 768, 8, 1),
    Case(196, 384, 1536, 8, 1, 1.5, 1.7, 1.4),
    Case(196, 384, 1536, 8, 2, 1.3, 1.7, 1.2),
    Case(1152, 128, 512, 32, 1, 1.5, 1.6, 1.4),
    Case(36, 128, 512, 32, 1, 2.0, 2.0),
    Case(36, 128, 512, 8, 1, 1.4, 2.0),
    Case(1000, 100, 402, 8, 1),
    Case(2048, 384, 1536, 8, 1, 1.25, None, 1.1, skewed=True),
)


def build(case: Case, device: str = "cpu") -> tuple[vismoe.MoE, nn.Sequential, Callable[[], Tensor]]:
    """The sparse layer, the dense MLP k times as wide, and a source of inputs."""
    torch.manual_seed(0)
    router = vismoe.TopKRouter(case.dim, case.num_experts, case.k, balance="none")
    sparse = vismoe.MoE(router, vismoe.MLPExperts(case.dim, case.hidden, case.num_experts))
    wide = case.k * case.hidden
    dense = nn.Sequential(nn.Linear(case.dim, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, case.dim))
    direction = torch.zeros(case.dim, device=device)
    if case.skewed:
        # Half of the tokens get a direction that is also in the first expert's router row.
        direction[0] = 40.0
        router.weight.data[:, 0] = 0
        router.weight.data[0, 0] = 1
    carriers = (torch.arange(case.tokens, device=device) % 2).float()[:, None]

    def inputs() -> Tensor:
        return torch.randn(1, case.tokens, case.dim, device=device) + carriers * direction

    if case.skewed:
        with torch.no_grad(), vismoe.record(sparse.to(device)) as routing:
            sparse(inputs())
        load = routing.layers[""][0].load
        assert load.max() * 2 >= load.sum(), load
    return sparse.to(device), dense.to(device), inputs


def forward_backward(module: nn.Module, x: Tensor) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    module(x.requires_grad_()).sum().backward()


def measure(case: Case, seconds: float = SECONDS) -> dict[str, float]:
    """Milliseconds by side."""
    sparse, dense, inputs = build(case)
    packed, optimized = packed_mlp(dense, case.tokens), vismoe.optimize(sparse)
    evaluated: dict[str, Side] = {
        "packed": (forward, packed),
        "plain": (forward, dense),
        "optimized": (forward, optimized),
        "evaluation": (forward, sparse.eval()),
    }
    figures = medians(evaluated, inputs, seconds)
    trained: dict[str, Side] = {"plain": (forward_backward, dense), "training": (forward_backward, sparse.train())}
    of_training = medians(trained, inputs, seconds)
    figures |= {"training": of_training["training"], "plain_training": of_training["plain"]}
    if native() is None or not native().has_bfloat16():
        return figures | dict.fromkeys(("packed_bfloat16", "optimized_bfloat16"), math.nan)
    rounded: dict[str, Side] = {
        "packed_bfloat16": (forward, packed_mlp(copy.deepcopy(dense).bfloat16(), case.tokens)),
        "optimized_bfloat16": (forward, vismoe.optimize(sparse, dtype="bfloat16")),
    }
    return figures | medians(rounded, lambda: inputs().bfloat16(), seconds)


def describe(case: Case) -> str:
    shape = f"{case.tokens} tokens, d={case.dim}, h={case.hidden}, E={case.num_experts}, k={case.k}"
    return shape + (", half on one" if case.skewed else "")


def main(threads: tuple[int, ...] = (1, 2), out: Path = RESULTS, seconds: float = SECONDS) -> None:
    """Measure every case; print a table and write it.

    Args:
        threads: Numbers of threads; each is measured.
        out: CSV file that is written.
        seconds: About how long each side of a case is measured, on average.
    """
    rows: list[dict[str, Any]] = []
    print(f"{processor()}; kernels: {vismoe.kernels_in_use()}; PyTorch {torch.__version__}\n")
    columns = "optimized ÷ packed", "evaluation ÷ optimized", "training ÷ plain", "plain ÷ packed", "in bfloat16"
    print(f"| case | threads | {' | '.join(columns)} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        for count in threads:
            torch.set_num_threads(count)
            ms = measure(case, seconds)
            in_bfloat16 = ms["optimized_bfloat16"] / ms["packed_bfloat16"]
            cells = [
                with_limit(ms["optimized"] / ms["packed"], case.optimized),
                with_limit(ms["evaluation"] / ms["optimized"], case.evaluation),
                with_limit(ms["training"] / ms["plain_training"], case.training),
                f"{ms['plain'] / ms['packed']:.2f}",
                "–" if math.isnan(in_bfloat16) else with_limit(in_bfloat16, case.bfloat16),
            ]
            print(f"| {describe(case)} | {count} | {' | '.join(cells)} |", flush=True)
            rows.append(as_row(case, count, ms))
    Table(out).write(rows)


def as_row(case: Case, threads: int, ms: dict[str, float]) -> dict[str, Any]:
    shape = {
        "tokens": case.tokens,
        "dim": case.dim,
        "hidden": case.hidden,
        "num_experts": case.num_experts,
        "k": case.k,
    }
    place = {"half_on_one": case.skewed, "device": "cpu", "threads": threads, "dtype": "float32"}
    return shape | place | {f"{name}_ms": "" if math.isnan(value) else round(value, 4) for name, value in ms.items()}


if __name__ == "__main__":
    tyro.cli(main)
