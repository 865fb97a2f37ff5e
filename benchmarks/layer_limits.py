"""Where the time of an optimized layer goes, which limit it is at, and how it grows.

    python benchmarks/layer_limits.py            # about three minutes of an idle machine

One thread, float32. The same run measures both limits: MACs per second with a large packed product, bytes per second
by reading a tensor that is larger than the caches. The time of the layer is divided into routing (measured alone),
experts (measured alone) and the rest. Growth is measured along one axis at a time from 784 tokens, d=192, h=768, E=8,
k=1. An exponent is fitted to the last three points of each. Writes results/layer_limits.csv and docs/performance.png.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import tyro
from matplotlib.ticker import LogLocator
from table import Table
from timing import processor
from torch import nn

import vismoe
from vismoe.kernels import PackedLinear, native
from vismoe.moe.execution.compiled import router_tensors
from vismoe.moe.execution.exchange import Rows

RESULTS = Path(__file__).parent / "results" / "layer_limits.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "performance.png"
SIZES = ((36, 128, 512, 32, 1), (196, 384, 1536, 8, 1), (2048, 384, 1536, 8, 1), (2048, 384, 1536, 64, 1))
"""Tokens, d, h, E, k."""
BASE = {"tokens": 784, "dim": 192, "hidden": 768, "num_experts": 8, "k": 1}
AXES: dict[str, tuple[int, ...]] = {
    "num_experts": (1, 2, 4, 8, 16, 32, 64, 128),
    "k": (1, 2, 4, 8),
    "batch": (1, 2, 4, 8, 16, 32),
    "image_size": (64, 96, 128, 192, 256, 384, 512),
}
PATCH = 16
SECONDS = 0.6


def median_ms(run: Callable[[], Any]) -> float:
    """Median milliseconds of a call."""
    times: list[float] = []
    with torch.inference_mode():
        while len(times) < 7 or sum(times) < SECONDS:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def limits() -> tuple[float, float]:
    """MACs and bytes per second."""
    layer, x = PackedLinear(torch.randn(1536, 384), None), torch.randn(1536, 384)
    macs = 1536 * 1536 * 384 / median_ms(lambda: layer(x)) * 1e3
    values = torch.randn(1 << 26)
    return macs, values.nbytes / median_ms(lambda: values.sum()) * 1e3


def build(tokens: int, dim: int, hidden: int, num_experts: int, k: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = vismoe.MoE(vismoe.TopKRouter(dim, num_experts, k), vismoe.MLPExperts(dim, hidden, num_experts))
    return vismoe.optimize(layer, inplace=True), torch.randn(1, tokens, dim)


def parts(tokens: int, dim: int, hidden: int, num_experts: int, k: int) -> dict[str, float]:
    """Milliseconds of the layer, of its routing and of its experts, and the rows' experts that have any."""
    layer: Any
    layer, x = build(tokens, dim, hidden, num_experts, k)
    router = router_tensors(layer.router)
    assert router is not None
    logits, weight = torch.empty(tokens, num_experts), torch.empty(tokens * k)
    token, inverse = (torch.empty(tokens * k, dtype=torch.int64) for _ in range(2))
    count = torch.empty(num_experts, dtype=torch.int64)
    outputs = [tensor.data_ptr() for tensor in (logits, token, weight, count, inverse)]
    sizes = tokens, dim, num_experts
    bias = 0 if router.bias is None else router.bias.data_ptr()

    def route() -> None:
        native().route(1, x.data_ptr(), *sizes, router.weight.data_ptr(), bias, k, 0, 0, *outputs)

    route()
    rows = Rows(x[0].index_select(0, token), count, tokens)
    return {
        "layer_ms": median_ms(lambda: layer(x)),
        "routing_ms": median_ms(route),
        "experts_ms": median_ms(lambda: layer.product(layer.experts, rows)),
        "experts_used": int((count > 0).sum()),
    }


def shape_on(axis: str, value: int) -> dict[str, int]:
    if axis == "batch":
        return BASE | {"tokens": 196 * value}
    return BASE | ({"tokens": (value // PATCH) ** 2} if axis == "image_size" else {axis: value})


def exponent(values: tuple[int, ...], times: list[float]) -> float:
    """The slope of log time over log value at the last three points."""
    x, y = [math.log(value) for value in values[-3:]], [math.log(value) for value in times[-3:]]
    middle_x, middle_y = sum(x) / 3, sum(y) / 3
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / sum((a - middle_x) ** 2 for a in x)


def main(out: Path = RESULTS, figure: Path = FIGURE) -> None:
    """Measure, print the tables, write the table and the figure."""
    torch.set_num_threads(1)
    macs, bandwidth = limits()
    print(f"{processor()}; kernels: {vismoe.kernels_in_use()}; one thread")
    print(f"limits: {macs / 1e9:.0f} GMAC/s, {bandwidth / 1e9:.1f} GB/s\n")
    print("| layer | ms | routing | experts | rest | limit by MACs | limit by bytes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for tokens, dim, hidden, num_experts, k in SIZES:
        found = parts(tokens, dim, hidden, num_experts, k)
        by_macs = 1e3 * tokens * k * dim * hidden * 2 / macs
        by_bytes = 1e3 * found["experts_used"] * dim * hidden * 2 * 4 / bandwidth
        whole, routing, experts = found["layer_ms"], found["routing_ms"], found["experts_ms"]
        shares = [routing, experts, max(0.0, whole - routing - experts)]
        cells = [f"{whole:.3f}", *(f"{share / whole:.0%}" for share in shares), f"{by_macs:.3f}", f"{by_bytes:.3f}"]
        print(f"| {tokens:,} tokens, d={dim}, h={hidden}, E={num_experts}, k={k} | {' | '.join(cells)} |", flush=True)
    rows = []
    plots, places = plt.subplots(1, len(AXES), figsize=(13, 3.2), layout="constrained")
    for place, (axis, values) in zip(places, AXES.items(), strict=True):
        times = []
        for value in values:
            layer, x = build(**shape_on(axis, value))
            times.append(median_ms(lambda layer=layer, x=x: layer(x)))
            rows.append({"axis": axis, "value": value, "milliseconds": round(times[-1], 4)})
        fitted = exponent(values, times)
        print(f"{axis}: exponent {fitted:.2f}", flush=True)
        place.loglog(values, times, "o-", color="tab:blue", markersize=4)
        place.set(title=f"{axis.replace('_', ' ')}: exponent {fitted:.2f}", xlabel=axis.replace("_", " "))
        place.set_xticks(values, [str(value) for value in values], fontsize=7)
        place.minorticks_off()
        place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.yaxis.set_major_formatter("{x:g}")
        place.grid(alpha=0.3)
    places[0].set_ylabel("milliseconds")
    plots.savefig(figure, dpi=110)
    Table(out).write(rows)


if __name__ == "__main__":
    tyro.cli(main)
