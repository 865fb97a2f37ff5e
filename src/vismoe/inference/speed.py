"""How fast networks are beside each other: latency, images per second and memory."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vismoe.vit import evaluating
from vismoe.weights import data_config

from .memory import return_memory

WARM_UP = 2


@dataclass(frozen=True)
class Speed:
    """The speed of a network for one batch size.

    - `batch_size`: images of a forward pass.
    - `milliseconds`: median time of a forward pass.
    - `images_per_second`: `batch_size` ÷ that time.
    - `megabytes`: weights, and the most memory that a forward pass takes besides; None where the system does not tell.
    """

    batch_size: int
    milliseconds: float
    images_per_second: float
    megabytes: float | None


def measure_speed(
    networks: Mapping[str, nn.Module], batch_size: int, seconds: float = 2.0, device: torch.device | None = None
) -> dict[str, Speed]:
    """Measures forward passes without gradient, on random images; all networks in turn, so that none has a quieter
    machine than others.

    **Arguments:**

    - `networks`: networks by name, each at its own image size; they are in evaluation mode meanwhile.
    - `batch_size`: images of a forward pass.
    - `seconds`: about how long each network is measured, default 2; at least five forward passes.
    - `device`: default None: the CPU.

    **Returns:** the speed of each, by name.

    **Raises:** ValueError for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it must be at least 1")
    device = device or torch.device("cpu")
    times: dict[str, list[float]] = {name: [] for name in networks}
    megabytes = {name: _megabytes(network.to(device), batch_size, device) for name, network in networks.items()}
    while any(len(own) < 5 + WARM_UP or sum(own) < seconds for own in times.values()):
        for name, network in networks.items():
            if len(times[name]) >= 5 + WARM_UP and sum(times[name]) >= seconds:
                continue
            images = _images(network, batch_size, device)
            start = time.perf_counter()
            _forward(network, images)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(own[WARM_UP:]) for name, own in times.items()}
    return {
        name: Speed(batch_size, 1e3 * median, batch_size / median, megabytes[name]) for name, median in medians.items()
    }


def _images(network: nn.Module, batch_size: int, device: torch.device) -> Tensor:
    return torch.randn(batch_size, *data_config(network)["input_size"], device=device)


def _forward(network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode(), evaluating(network):
        network(images)
    if images.is_cuda:
        torch.cuda.synchronize()


def _megabytes(network: nn.Module, batch_size: int, device: torch.device) -> float | None:
    """Megabytes of weights, and of what a forward pass takes besides at its peak."""
    images = _images(network, batch_size, device)
    weights = sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _forward(network, images)
        return (weights + torch.cuda.max_memory_allocated() - before) / 1e6
    return_memory()  # what is free but still this process's would be used again, and not be seen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return None
    before = _status("VmRSS")
    _forward(network, images)
    return weights / 1e6 + max(0, _status("VmHWM") - before) / 1e3  # the system counts roughly


def _status(name: str) -> int:
    """Kilobytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
