"""What the benchmarks of speed share: interleaved timing, dense layers packed by oneDNN, limits in tables."""

import copy
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SECONDS = 1.5
"""About how long each side of a case is measured, on average."""
WARM_UP = 2

Side = tuple[Callable[[nn.Module, Tensor], None], nn.Module]
"""What is timed: a function, and the module that it is called with."""


def forward(module: nn.Module, x: Tensor) -> None:
    """A forward pass for inference."""
    with torch.inference_mode():
        module(x)


def medians(
    sides: dict[str, Side],
    inputs: Callable[[], Tensor],
    seconds: float = SECONDS,
    rounds: int = 12,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each side. All sides run in turn, each time with a new input.

    **Arguments:**

    - `sides`: what is timed, by name.
    - `inputs`: a source of inputs.
    - `seconds`: about how long each side is measured, on average; default 1.5.
    - `rounds`: smallest number of rounds, the two of the warm-up included; default 12.
    - `clock`: seconds that have passed; default: of the wall.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    done = 0
    while done < rounds or (sum(map(sum, times.values())) < seconds * len(sides) and done < 2000):
        for name, (run, module) in sides.items():
            x = inputs()
            start = clock()
            run(module, x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if done >= WARM_UP:
                times[name].append(clock() - start)
        done += 1
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


class OneDNNLinear(nn.Module):
    """A linear layer with oneDNN's packed weight, and the GELU behind it.

    **Arguments:**

    - `linear`: the layer; its type, float32 or bfloat16, is that of the product.
    - `rows`: number of rows that the weight is packed for.
    - `gelu`: "" for no activation; otherwise `nn.GELU.approximate`: "none" or "tanh".
    """

    def __init__(self, linear: nn.Linear, rows: int, gelu: str = ""):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = ("gelu", [], gelu) if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.activation)
        return y


def packed_mlp(dense: nn.Sequential, rows: int) -> nn.Module:
    """An MLP (linear layer, GELU, linear layer) with oneDNN's packed weights, GELU fused into the first product."""
    up, activation, down = dense
    assert isinstance(activation, nn.GELU)
    return nn.Sequential(OneDNNLinear(up, rows, activation.approximate), OneDNNLinear(down, rows))


def packed_network(network: nn.Module, rows: int) -> nn.Module:
    """A copy of a dense network of timm's with oneDNN's packed weights, GELU fused into the products before it.

    **Arguments:** `rows`: number of tokens of a forward pass, which the weights are packed for.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear:
                activation: Any = getattr(module, "act", None) if name == "fc1" else None
                if isinstance(activation, nn.GELU):
                    module.act = nn.Identity()
                    setattr(module, name, OneDNNLinear(layer, rows, activation.approximate))
                else:
                    setattr(module, name, OneDNNLinear(layer, rows))
    return network


def with_limit(ratio: float, limit: float | None, at_least: bool = False) -> str:
    """A table's cell: a ratio, and the largest accepted one (with `at_least`: the smallest); bold if it is not met."""
    if limit is None:
        return f"{ratio:.2f}"
    met = ratio >= limit if at_least else ratio <= limit
    figure = f"{ratio:.2f}" if met else f"**{ratio:.2f}**"
    return f"{figure} ({'≥' if at_least else '≤'} {limit:g})"


def processor() -> str:
    """The processor's name, where the system tells it."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
