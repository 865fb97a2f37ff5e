"""Compares the time of the sparse layer with that of a dense MLP with the same MACs.

    python benchmarks/layer_speed.py             # every case, one and two threads: about 6 minutes on two idle cores

In float32, with new inputs each time. Sparse and dense run alternately. Reported is the median time of the sparse layer
÷ that of the dense MLP, the better result of one and two threads. Writes results/layer_speed.csv. If there is a CUDA
device, it is measured with bfloat16 autocast too.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from table import Table
from torch import Tensor, nn

import vismoe

RESULTS = Path(__file__).parent / "results" / "layer_speed.csv"


@dataclass(frozen=True)
class Case:
    """One case. `limit`: largest accepted sparse ÷ dense, forward and forward + backward; `skewed`: half of the tokens
    go to one expert."""

    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int
    limit: tuple[float | None, float | None] = (None, None)
    skewed: bool = False


CASES = (
    Case(2048, 384, 1536, 8, 1, (1.25, 1.30)),
    Case(2048, 384, 1536, 8, 2, (1.25, 1.30)),
    Case(2048, 384, 1536, 32, 1, (1.8, 2.5)),
    Case(2048, 384, 1536, 32, 2),
    Case(3136, 192, 768, 8, 1, (1.5, 1.5)),
    Case(196, 384, 1536, 8, 1, (2.3, 3.2)),
    Case(196, 384, 1536, 8, 2, (2.3, 3.2)),
    Case(2048, 384, 1536, 8, 1, (1.35, None), skewed=True),
)


def build(case: Case, device: str) -> tuple[vismoe.MoE, nn.Module, Callable[[], Tensor]]:
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

    return sparse.to(device), dense.to(device), inputs


def timed(module: nn.Module, x: Tensor, backward: bool) -> float:
    """Seconds of one pass."""
    for parameter in module.parameters():
        parameter.grad = None
    x.requires_grad_(backward)
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y = module(x)
        if backward:
            y.sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: Case, backward: bool, repeats: int, device: str) -> tuple[float, float]:
    """Median milliseconds of the sparse layer and of the dense MLP."""
    sparse, dense, inputs = build(case, device)
    if case.skewed:
        with torch.no_grad(), vismoe.record(sparse) as routing:
            sparse(inputs())
        load = routing.layers[""][0].load
        assert load.max() * 2 >= load.sum(), load
    times: dict[nn.Module, list[float]] = {sparse: [], dense: []}
    for repeat in range(repeats + 2):
        for module, seconds in times.items():
            elapsed = timed(module, inputs(), backward)
            if repeat >= 2:
                seconds.append(elapsed)
    return 1e3 * statistics.median(times[sparse]), 1e3 * statistics.median(times[dense])


def main(threads: tuple[int, ...] = (1, 2), repeats: int = 25, out: Path = RESULTS) -> None:
    """Measure every case; print a table and write it."""
    rows = []
    places = [("cpu", count, False) for count in threads]
    if torch.cuda.is_available():
        places += [("cuda", threads[0], False), ("cuda", threads[0], True)]
    for case in CASES:
        for direction, backward in (("forward", False), ("forward + backward", True)):
            limit = case.limit[backward]
            best: dict[tuple[str, bool], float] = {}
            for device, count, bfloat16 in places:
                torch.set_num_threads(count)
                with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                    sparse, dense = measure(case, backward, repeats, device)
                best[device, bfloat16] = min(best.get((device, bfloat16), float("inf")), sparse / dense)
                rows.append(
                    {
                        "tokens": case.tokens,
                        "dim": case.dim,
                        "hidden": case.hidden,
                        "num_experts": case.num_experts,
                        "k": case.k,
                        "half_on_one": case.skewed,
                        "pass": direction,
                        "device": device,
                        "threads": count,
                        "dtype": "bfloat16" if bfloat16 else "float32",
                        "sparse_ms": round(sparse, 3),
                        "dense_ms": round(dense, 3),
                        "ratio": round(sparse / dense, 3),
                        "limit": limit or "",
                    }
                )
            figures = ", ".join(
                f"{device}{' bfloat16' if half else ''} {ratio:.2f}" for (device, half), ratio in best.items()
            )
            name = f"{case.tokens} tokens, d={case.dim}, E={case.num_experts}, k={case.k}"
            name += ", half on one" if case.skewed else ""
            print(f"{name}, {direction}: {figures}" + (f" (limit {limit})" if limit else ""), flush=True)
    Table(out).write(rows)


if __name__ == "__main__":
    tyro.cli(main)
