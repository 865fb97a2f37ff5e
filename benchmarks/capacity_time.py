"""Measures how much time a smaller capacity of the experts saves on a CPU.

    python benchmarks/capacity_time.py          # ViT-B/16 with one and with two experts per token: five minutes

Networks have random weights and balanced experts, and are optimized. All capacity factors of a row run in turn; each
time is divided by that of the network as it comes, which drops nothing. The images of a batch compete for capacity.

Writes results/capacity_time.csv.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import tyro
from table import Table
from timing import Side, forward, medians
from torch import Tensor, nn

import vismoe
from vismoe.explain import using_capacity

RESULTS = Path(__file__).parent / "results" / "capacity_time.csv"
PRESET = "vmoe_base_patch16_224_every2_e8"
EXPERTS_PER_TOKEN = (1, 2)
FACTORS = (1.0, 0.5, 0.25, 0.1)
BATCHES = (1, 16)
SIZE = (3, 224, 224)


def at_capacity(factor: float | None) -> Callable[[nn.Module, Tensor], None]:
    """A forward pass at a capacity factor."""

    def run(model: nn.Module, x: Tensor) -> None:
        with using_capacity(model, factor):
            forward(model, x)

    return run


def kept_share(model: nn.Module, x: Tensor, factor: float) -> float:
    """Share of the choices that are kept, mean over layers."""
    with using_capacity(model, factor), vismoe.record(model) as routing:
        forward(model, x)
    calls = [call for calls in routing.layers.values() for call in calls]
    return 1 - sum(float(call.dropped_share) for call in calls) / len(calls)


def main(preset: str = PRESET, batches: tuple[int, ...] = BATCHES, seconds: float = 6.0) -> None:
    """Runs the measurement.

    Args:
        preset: Name of a sparse network.
        batches: Images per forward pass.
        seconds: About how long each capacity is measured.
    """
    for k in EXPERTS_PER_TOKEN:
        torch.manual_seed(0)
        model = vismoe.create_model(preset, num_classes=1000, experts_per_token=k).eval()
        vismoe.rebalance(model, [torch.randn(2, *SIZE) for _ in range(16)])
        model = vismoe.optimize(model, inplace=True)
        for batch in batches:
            sides: dict[str, Side] = {str(factor): (at_capacity(factor), model) for factor in (None, *FACTORS)}
            found = medians(sides, partial(torch.randn, batch, *SIZE), seconds)
            for factor in FACTORS:
                row = {
                    "preset": preset,
                    "k": k,
                    "batch": batch,
                    "capacity": factor,
                    "kept": round(kept_share(model, torch.randn(batch, *SIZE), factor), 3),
                    "milliseconds": round(found[str(factor)], 1),
                    "time_ratio": round(found[str(factor)] / found["None"], 3),
                }
                Table(RESULTS).append(row)
                print(row, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
