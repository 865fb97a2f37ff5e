"""Measures the networks of the study: latency of one image, and processor time of a training step.

    PYTHONPATH=benchmarks python -m evidence.speed      # two or three minutes of an idle machine

The runs are spread over sittings and machines, so their own processor times do not compare; here all take turns on one
thread of one machine. The latency is measured for each network as it is, and optimized by `vismoe.optimize`. Networks
are untrained except for the timed steps, which balance the experts. Writes results/evidence_speed.csv.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from table import Table
from torch import nn
from torch.nn import functional as F

import vismoe
from vismoe.weights import data_config

from .families import multiplications
from .runs import BATCH, queue
from .study import TABLE
from .tasks import DECISIVE, TASKS
from .work import RESULTS

SPEED = RESULTS / "evidence_speed.csv"
CLASSES = TASKS[DECISIVE].classes


def images_for(network: nn.Module, number: int) -> torch.Tensor:
    """Random images of the size that the network takes."""
    return torch.randn(number, *data_config(network)["input_size"])


def latency(network: nn.Module) -> float:
    """Milliseconds of one image, at evaluation."""
    image = images_for(network, 1)
    network.eval()
    with torch.inference_mode():
        start = time.perf_counter()
        network(image)
        return 1e3 * (time.perf_counter() - start)


def training_step(network: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Milliseconds of processor time of one batch: forward, backward, AdamW."""
    images, labels = images_for(network, BATCH), torch.randint(CLASSES, (BATCH,))
    network.train()
    start = time.process_time()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    return 1e3 * (time.process_time() - start)


def main(latencies: int = 300, steps: int = 12, out: Path = SPEED) -> None:
    """Measure every network of the queue in turn.

    Args:
        latencies: Pictures of each network.
        steps: Training steps of each network.
        out: Table to write.
    """
    torch.set_num_threads(1)
    runs = {(run.family, run.width): run for run in queue(TABLE.rows()) if run.task == DECISIVE}
    networks = {key: run.network() for key, run in runs.items()}
    optimizers = {key: torch.optim.AdamW(network.parameters(), 1e-4) for key, network in networks.items()}

    def medians(those: dict[Any, nn.Module], measure: Callable[..., float], repeats: int, *more: dict) -> dict:
        found = {key: [] for key in those}
        for repeat in range(repeats + 2):
            for key, network in those.items():
                milliseconds = measure(network, *(each[key] for each in more))
                if repeat >= 2:
                    found[key].append(milliseconds)
        return {key: median(each) for key, each in found.items()}

    step = medians(networks, training_step, steps, optimizers)
    forms = {"latency_ms": networks, "optimized_ms": {key: vismoe.optimize(each) for key, each in networks.items()}}
    alone = medians({(form, key): forms[form][key] for form in forms for key in networks}, latency, latencies)
    rows = [
        {
            "family": family.name,
            "width": width,
            "trunk": multiplications(networks[family, width])[0],
            **{form: round(alone[form, (family, width)], 3) for form in forms},
            "step_cpu_ms": round(step[family, width], 1),
        }
        for family, width in networks
    ]
    for row in rows:
        print(*row.values(), sep="\t")
    Table(out).write(rows)


if __name__ == "__main__":
    tyro.cli(main)
