"""Compares the time of the sparse layer with that of a dense MLP with the same MACs.

    python benchmarks/layer_speed.py             # every case, one and two threads: some minutes of two idle cores

On a CPU, in float32, with new inputs each time; all sides run in turn, and medians are compared. "Packed" is the dense
MLP as oneDNN runs it with packed weights and fused GELU, "plain" as PyTorch runs it. The table has four ratios: the
layer that `vismoe.optimize` makes ÷ packed; the layer in evaluation mode ÷ the optimized one; forward and backward ÷
plain; plain ÷ packed. Writes results/layer_speed.csv. For a CUDA device there is benchmarks/cuda_device.py.
"""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from table import Table
from torch import Tensor, nn

import vismoe

RESULTS = Path(__file__).parent / "results" / "layer_speed.csv"
SECONDS = 1.5
"""About how long each side of a case is measured, on average."""


@dataclass(frozen=True)
class Case:
    """One case. Limits: largest accepted optimized ÷ packed, evaluation mode ÷ optimized, forward + backward ÷ plain;
    `skewed`: half of the tokens go to one expert."""

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int
    optimized: float | None = None
    evaluation: float | None = None
    training: float | None = None
    skewed: bool = False


CASES = (
    Case(2048, 384, 1536, 8, 1, 1.15, 1.5, 1.0),
    Case(2048, 384, 1536, 8, 2, 1.15, 1.5, 1.0),
    Case(2048, 384, 1536, 32, 1),
    Case(2048, 384, 1536, 64, 1, 1.7, 1.6, 1.5),
    Case(3136, 192, 768, 8, 1),
    Case(196, 384, 1536, 8, 1, 1.5, 1.7, 1.4),
    Case(196, 384, 1536, 8, 2, 1.3, 1.7, 1.2),
    Case(1152, 128, 512, 32, 1, 1.5, 1.6, 1.4),
    Case(36, 128, 512, 32, 1, 2.0, 2.0),
    Case(36, 128, 512, 8, 1, 1.4, 2.0),
    Case(1000, 100, 402, 8, 1),
    Case(2048, 384, 1536, 8, 1, 1.25, None, 1.1, skewed=True),
)


class Packed(nn.Module):
    """A dense MLP with oneDNN's packed weights, GELU fused into the first product."""

    def __init__(self, dense: nn.Sequential, tokens: int):
        super().__init__()
        up: Any = dense[0]
        down: Any = dense[2]
        pack = torch.ops.mkldnn._reorder_linear_weight
        self.up, self.up_bias = pack(up.weight.detach(), tokens), up.bias.detach()
        self.down, self.down_bias = pack(down.weight.detach(), tokens), down.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        hidden = linear(x, self.up, self.up_bias, "gelu", [], "tanh")
        y: Tensor = linear(hidden, self.down, self.down_bias, "none", [], "")
        return y


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


def forward(module: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        module(x)


def forward_backward(module: nn.Module, x: Tensor) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    module(x.requires_grad_()).sum().backward()


Side = tuple[Callable[[nn.Module, Tensor], None], nn.Module]


def medians(
    sides: dict[str, Side],
    inputs: Callable[[], Tensor],
    seconds: float = SECONDS,
    fewest: int = 12,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each side by a clock; all sides in turn, for about `seconds` a side on average, but at
    least `fewest` times. The first two times of each do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    repeats = 0
    while repeats < fewest or (sum(map(sum, times.values())) < seconds * len(sides) and repeats < 2000):
        for name, (run, module) in sides.items():
            x = inputs()
            start = clock()
            run(module, x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if repeats >= 2:
                times[name].append(clock() - start)
        repeats += 1
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def measure(case: Case, seconds: float = SECONDS) -> dict[str, float]:
    """Milliseconds by side."""
    sparse, dense, inputs = build(case)
    packed, optimized = Packed(dense, case.tokens), vismoe.optimize(sparse)
    evaluated: dict[str, Side] = {
        "packed": (forward, packed),
        "plain": (forward, dense),
        "optimized": (forward, optimized),
        "evaluation": (forward, sparse.eval()),
    }
    figures = medians(evaluated, inputs, seconds)
    trained: dict[str, Side] = {"plain": (forward_backward, dense), "training": (forward_backward, sparse.train())}
    of_training = medians(trained, inputs, seconds)
    return figures | {"training": of_training["training"], "plain_training": of_training["plain"]}


def describe(case: Case) -> str:
    shape = f"{case.tokens} tokens, d={case.dim}, h={case.hidden}, E={case.num_experts}, k={case.k}"
    return shape + (", half on one" if case.skewed else "")


def with_limit(ratio: float, limit: float | None) -> str:
    if limit is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (≤ {limit:g})" if ratio <= limit else f"**{ratio:.2f}** (≤ {limit:g})"


def main(threads: tuple[int, ...] = (1, 2), out: Path = RESULTS, seconds: float = SECONDS) -> None:
    """Measure every case; print a table and write it.

    Args:
        threads: Numbers of threads; each is measured.
        out: CSV file that is written.
        seconds: About how long each side of a case is measured, on average.
    """
    rows: list[dict[str, Any]] = []
    print(f"{processor()}; kernels: {vismoe.kernels_in_use()}; PyTorch {torch.__version__}\n")
    print("| case | threads | optimized ÷ packed | evaluation ÷ optimized | training ÷ plain | plain ÷ packed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        for count in threads:
            torch.set_num_threads(count)
            ms = measure(case, seconds)
            cells = [
                with_limit(ms["optimized"] / ms["packed"], case.optimized),
                with_limit(ms["evaluation"] / ms["optimized"], case.evaluation),
                with_limit(ms["training"] / ms["plain_training"], case.training),
                f"{ms['plain'] / ms['packed']:.2f}",
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
    return shape | place | {f"{name}_ms": round(value, 4) for name, value in ms.items()}


def processor() -> str:
    """The processor's name, where the system tells it."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    tyro.cli(main)
