"""Measures a training step in 1, 2 and 4 processes of one machine, and its share in exchanges of tokens.

    python benchmarks/distributed_step.py               # about three minutes on two cores
    python benchmarks/distributed_step.py --rounds 6    # a first look

All layouts train the same network, with the same total number of images in a step, and the cores are divided among the
processes. In each round every layout makes one step, in turn; all layouts of one number of processes live in the same
processes. A step is forward, backward, clipping and AdamW, timed from when all processes begin to when all are done.

- `ddp`: the whole network in every process, PyTorch's DistributedDataParallel, as `vismoe train` uses it by default.
- `fsdp`: `vismoe.parallelize` with ep=1: everything is sharded by FSDP2.
- `ep N`: `vismoe.parallelize` with ep=N.

The time in exchanges is that in which a process sends tokens or waits for them, forward and backward, by PyTorch's
profiler: the mean of processes. Writes results/distributed_step.csv, and with --figure a figure of one step of two
processes that share experts.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from table import Table
from timing import processor
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import vismoe
from vismoe.parallel import join_mesh
from vismoe.training.optimizer import make_optimizer
from vismoe.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "distributed_step.csv"
LAYOUTS = {1: ("alone",), 2: ("ddp", "fsdp", "ep 2"), 4: ("ddp", "fsdp", "ep 2", "ep 4")}
"""Layouts by number of processes."""
EXCHANGE = ("_c10d_functional::wait_tensor", "all_to_all_single")
"""Parts of the names of a step's events in which tokens are exchanged. Only the exchange uses these functions."""
WARM_UP, PROFILED = 4, 3

Step = Callable[[], None]


@dataclass(frozen=True)
class Span:
    """What a process did, in milliseconds from the beginning of a step.

    - `name`: name of the event.
    - `start`, `end`: in milliseconds.
    - `thread`: number of the thread.
    """

    name: str
    start: float
    end: float
    thread: int


def training_step(layout: str, preset: str, images: int) -> Step:
    """Returns a function that makes a training step with this process's share of the images."""
    torch.manual_seed(0)
    model: nn.Module = vismoe.create_model(preset, num_classes=10).train()
    if layout.startswith("ep"):
        vismoe.parallelize(model, ep=int(layout.removeprefix("ep ")))
    elif layout == "fsdp":
        vismoe.parallelize(model, ep=1)
    optimizer = make_optimizer(model, Recipe())
    called = model
    if layout == "ddp":
        with join_mesh() as mesh:
            called = mesh.replicate(model)
    share = images // (dist.get_world_size() if dist.is_initialized() else 1)
    size = model.pretrained_cfg["input_size"]
    generator = torch.Generator().manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    x = torch.randn(share, *size, generator=generator)
    y = torch.randint(10, (share,), generator=generator)

    def step() -> None:
        F.cross_entropy(called(x), y).backward()
        vismoe.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Step) -> float:
    """Seconds of a step, until all processes are done."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def spans(step: Step) -> list[Span]:
    """The events of one step, those inside others left out if they have the same name."""
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
        dist.barrier()
    events = list(profiled.events())
    first = min(event.time_range.start for event in events)
    return [
        Span(event.name, (event.time_range.start - first) / 1e3, (event.time_range.end - first) / 1e3, event.thread)
        for event in events
    ]


def is_exchange(span: Span) -> bool:
    return any(part in span.name for part in EXCHANGE)


def is_sharding(span: Span) -> bool:
    """Whether FSDP2 gathers parameters or reduces gradients."""
    return span.name.startswith("FSDP::") and ("all_gather" in span.name or "reduce" in span.name)


def covered(found: Iterable[Span]) -> float:
    """Milliseconds in which at least one of the spans was going on."""
    total, until = 0.0, 0.0
    for span in sorted(found, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total


def share_of(kind: Callable[[Span], bool], profiled: list[list[Span]]) -> float:
    """The share of a step's time in events of a kind: the median of steps, and of it the mean of processes."""
    own = statistics.median(covered(filter(kind, found)) / max(span.end for span in found) for found in profiled)
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, own)
    return statistics.mean(of_all)


def measure(rank: int, size: int, store: str, preset: str, images: int, rounds: int, out: Path, figure: str) -> None:
    """One process: measures all layouts of a number of processes; the main one writes the rows."""
    torch.set_num_threads(max(1, multiprocessing.cpu_count() // size))
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
    steps = {layout: training_step(layout, preset, images) for layout in LAYOUTS[size]}
    seconds: dict[str, list[float]] = {layout: [] for layout in steps}
    for number in range(WARM_UP + rounds):
        for layout, step in steps.items():
            taken = timed(step)
            if number >= WARM_UP:
                seconds[layout].append(taken)
    shares = {}
    for layout, step in steps.items():
        profiled = [spans(step) for _ in range(PROFILED)]
        shares[layout] = [share_of(kind, profiled) for kind in (is_exchange, is_sharding)]
        if figure and layout == "ep 2" and size == 2:
            of_all: list[Any] = [None] * size
            dist.all_gather_object(of_all, profiled[-1])
            if rank == 0:
                draw(of_all, Path(figure))
    if rank == 0:
        for layout, found in seconds.items():
            median = statistics.median(found)
            row = {
                "processor": processor(),
                "preset": preset,
                "images": images,
                "processes": size,
                "layout": layout,
                "milliseconds": round(1e3 * median, 1),
                "lowest": round(1e3 * min(found), 1),
                "to_ddp": ratio(found, seconds["ddp"]) if size > 1 else "",
                "share_in_exchange": round(shares[layout][0], 3),
                "share_in_sharding": round(shares[layout][1], 3),
            }
            Table(out).append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items() if name != "processor"), flush=True)
    dist.destroy_process_group()


def ratio(found: list[float], expected: list[float]) -> float:
    """The median over rounds, because the speed of a machine may change between them."""
    return round(statistics.median(a / b for a, b in zip(found, expected, strict=True)), 3)


def draw(of_all: list[list[Span]], path: Path) -> None:
    """Draws one step: a line for each process, with forward, backward and optimiser, and the exchanges marked."""
    from vismoe.files.figures import new_figure, save_figure

    figure = new_figure(11, 2.6)
    axes = figure.subplots()
    kinds = {
        "exchange of tokens": ("#d1495b", is_exchange),
        "FSDP: parameters and gradients": ("#edae49", is_sharding),
        "sums: load of experts, norm of the gradient": ("#66a182", lambda span: "allreduce_" in span.name),
    }
    for rank, found in enumerate(of_all):
        end = max(span.end for span in found)
        axes.broken_barh([(0, end)], (rank - 0.35, 0.7), color="#dfe5ea", label="computation" if rank == 0 else None)
        for number, (kind, (color, belongs)) in enumerate(reversed(kinds.items())):
            bars = [(span.start, span.end - span.start) for span in found if belongs(span)]
            label = kind if rank == 0 else None
            axes.broken_barh(bars, (rank - 0.35, 0.7), color=color, label=label, zorder=2 + number)
    axes.set(xlabel="milliseconds", yticks=range(len(of_all)), xlim=(0, None))
    axes.set_yticklabels([f"process {rank}" for rank in range(len(of_all))])
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    save_figure(figure, path, dpi=130)


def main(
    preset: str = "vmoe_nano_patch4_32_every2_e8",
    images: int = 128,
    rounds: int = 30,
    sizes: tuple[int, ...] = (1, 2, 4),
    out: Path = RESULTS,
    figure: str = "",
) -> None:
    """Measure a training step in several processes of this machine.

    Args:
        preset: A sparse preset whose experts 4 divides.
        images: Images of a step, of all processes together.
        rounds: Steps of each layout that are timed.
        sizes: Numbers of processes: 1, 2, 4.
        out: The CSV file.
        figure: A PNG file for the figure of a step; default: none.
    """
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (size, f"{folder}/store", preset, images, rounds, out, figure)
            context = multiprocessing.get_context("spawn")
            started = [context.Process(target=measure, args=(rank, *arguments)) for rank in range(size)]
            for process in started:
                process.start()
            for process in started:
                process.join()
            if any(process.exitcode for process in started):
                raise SystemExit(f"{size} processes: one ended with an error")


if __name__ == "__main__":
    tyro.cli(main)
