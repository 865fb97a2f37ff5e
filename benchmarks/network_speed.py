"""Compares the time and memory of whole sparse networks with those of dense networks.

    python benchmarks/network_speed.py                  # everything, one and two threads: ten minutes of two idle cores
    python benchmarks/network_speed.py --no-compiled    # without torch.compile, which compiles for minutes

Random images, new each time; all networks of a row run in turn, and medians are compared.

- Inference: ViT-S/16 with 8 experts in every second block, optimized, against timm's ViT-S/16, packed by
  `vismoe.optimize`, by oneDNN, and by torch.compile with frozen weights. In bfloat16 where `vismoe.optimize` has it.
- Training step: forward, backward and AdamW of the same networks.
- Memory: weights and the peak of the activations of networks that were optimized with `inplace=True`, and what they add
  to a process at the peak of all: while one is built, optimized and run once.
- The trunk of docs/evidence.md of width 128, sparse against dense and against wider dense ones, without the classifier.
  The sparse one's experts are balanced first, as they are in a trained network.

Writes results/network_speed.csv.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from evidence.families import DENSE_1, GROWN, SPARSE_32
from evidence.tasks import PIXELS
from processes import in_processes
from table import Table
from timing import Side, forward, medians, packed_network, processor, with_limit
from torch import Tensor, nn
from torch.nn import functional as F

import vismoe
from vismoe.inference import measure_speed

RESULTS = Path(__file__).parent / "results" / "network_speed.csv"
SPARSE, DENSE = "vmoe_small_patch16_224_every2_e8", "vit_small_patch16_224"
IMAGE, TOKENS, CLASSES = 224, 197, 1000
BATCHES = (1, 16)
INFERENCE = {"float32": {1: 0.87, 16: 0.95}, "bfloat16": {1: 0.80, 16: 0.92}}
"""Smallest accepted images/s ÷ those of the dense network that is packed in the same way, by type and batch."""
TRAINING = 0.97
"""Smallest accepted images/s of training ÷ dense."""
ACTIVATIONS = 1.2
"""Accepted peak of memory: packed weights + this × the dense network's activations."""
WIDTH = 128
TRUNK = {1: (1.7, 1.8), 16: (1.15, 1.25)}
"""Largest accepted time ÷ dense by batch: as they come, and both optimized."""


def sparse_network() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = vismoe.create_model(SPARSE, num_classes=CLASSES)
    return network


def dense_network() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(DENSE, num_classes=CLASSES)
    return network


def images_of(number: int, pixels: int) -> Callable[[], Tensor]:
    """A source of batches."""
    return lambda: torch.randn(number, 3, pixels, pixels)


def optimized(network: nn.Module, dtype: str) -> nn.Module | None:
    """The inference form; None where there is none in this type."""
    try:
        return vismoe.optimize(network, dtype=dtype)
    except ValueError as error:
        if dtype == "float32":
            raise
        print(f"\nNo rows in {dtype}: {error}")
        return None


class Rounded(nn.Module):
    """A network in bfloat16 for images in float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x.bfloat16())
        return y.float()


@contextmanager
def freezing() -> Iterator[None]:
    """Inside the block torch.compile packs weights, which it takes as constants."""
    import torch._inductor.config as inductor

    before, inductor.freezing = inductor.freezing, True
    try:
        yield
    finally:
        inductor.freezing = before


def peers(dtype: str, number: int, compiled: bool) -> dict[str, nn.Module]:
    """The dense network as others run it fastest."""
    dense = dense_network().eval()
    if dtype == "bfloat16":
        dense = dense.bfloat16()
    found = {"onednn": packed_network(dense, TOKENS * number)}
    if compiled:
        torch._dynamo.reset()
        found["compiled"] = torch.compile(dense, dynamic=False)
    return {name: Rounded(network) for name, network in found.items()} if dtype == "bfloat16" else found


Row = dict[str, Any]


def rows_of(case: str, number: int, threads: int, dtype: str, figures: dict[str, float], unit: str = "ms") -> list[Row]:
    shared = {"case": case, "images": number, "threads": threads, "dtype": dtype}
    return [shared | {"network": name, "figure": round(value, 4), "unit": unit} for name, value in figures.items()]


def inference(threads: tuple[int, ...], compiled: bool) -> Iterator[list[Row]]:
    names = {"dense": "vismoe.optimize", "onednn": "oneDNN", "compiled": "torch.compile"}
    names = names if compiled else {name: title for name, title in names.items() if name != "compiled"}
    print(f"Inference, images/s ÷ timm's {DENSE} packed by …\n")
    print(f"| images | threads | type | ms | {' | '.join(names.values())} |")
    print("| --- " * (4 + len(names)) + "|", flush=True)
    for dtype, limits in INFERENCE.items():
        if (sparse := optimized(sparse_network(), dtype)) is None:
            continue
        dense = vismoe.optimize(dense_network(), dtype=dtype)
        for number in BATCHES:
            for count in threads:
                torch.set_num_threads(count)
                networks = {"sparse": sparse, "dense": dense} | peers(dtype, number, compiled)
                sides: dict[str, Side] = {name: (forward, network) for name, network in networks.items()}
                images = images_of(number, IMAGE)
                with freezing():
                    for run, network in sides.values():
                        run(network, images())
                    ms = medians(sides, images, rounds=9)
                ratios = {name: ms[name] / ms["sparse"] for name in names}
                cells = [with_limit(ratios.pop("dense"), limits[number], at_least=True)]
                cells += [f"{ratio:.2f}" for ratio in ratios.values()]
                print(f"| {number} | {count} | {dtype} | {ms['sparse']:.1f} | {' | '.join(cells)} |", flush=True)
                yield rows_of("inference", number, count, dtype, ms)
    print()


def training_step(optimizer: torch.optim.Optimizer) -> Callable[[nn.Module, Tensor], None]:
    labels = torch.arange(CLASSES)

    def step(network: nn.Module, images: Tensor) -> None:
        F.cross_entropy(network(images), labels[: len(images)]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(threads: tuple[int, ...]) -> Iterator[list[Row]]:
    print(f"Training step (forward, backward, AdamW), images/s ÷ timm's {DENSE}\n")
    print("| images | threads | ms | images/s ÷ dense |\n| --- | --- | --- | --- |")
    networks = {"dense": dense_network().train(), "sparse": sparse_network().train()}
    optimizers = {name: torch.optim.AdamW(network.parameters(), fused=True) for name, network in networks.items()}
    sides: dict[str, Side] = {name: (training_step(optimizers[name]), network) for name, network in networks.items()}
    number = BATCHES[-1]
    for count in threads:
        torch.set_num_threads(count)
        ms = medians(sides, images_of(number, IMAGE), rounds=7)
        ratio = with_limit(ms["dense"] / ms["sparse"], TRAINING, at_least=True)
        print(f"| {number} | {count} | {ms['sparse']:.0f} | {ratio} |", flush=True)
        yield rows_of("training", number, count, "float32", ms)
    print()


def megabytes(name: str, number: int) -> dict[str, float]:
    """In a process of its own: megabytes of an optimized network's weights, of its activations, and what it adds to the
    process at its peak, from before it is built until it has run."""
    torch.set_num_threads(1)
    small = vismoe.optimize(vismoe.create_model("vmoe_pico_patch2_8_every2_e8"), inplace=True)
    forward(small, torch.randn(1, 3, 8, 8))  # the libraries are loaded, and count for nothing
    images = torch.randn(number, 3, IMAGE, IMAGE)
    before = _status("VmRSS")
    network = vismoe.optimize(sparse_network() if name == "sparse" else dense_network(), inplace=True)
    forward(network, images)
    peak = _status("VmHWM") - before
    weights = sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]) / 1e6
    running = [measure_speed({name: network}, number, seconds=0)[name].megabytes or 0 for _ in range(5)]
    return {"weights": weights, "activations": statistics.median(running) - weights, "peak": peak}


def _status(name: str) -> float:
    """Megabytes of this process, by their name in Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def memory() -> Iterator[list[Row]]:
    print("Memory of optimized networks (inplace=True), MB. Limit: packed weights + 1.2 × dense activations\n")
    print("| images | weights | dense activations | activations | weights + activations | peak from building on |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number in BATCHES:
        sparse, dense = (next(iter(in_processes(1, megabytes, [(name, number)]))) for name in ("sparse", "dense"))
        limit = sparse["weights"] + ACTIVATIONS * dense["activations"]
        whole = sparse["weights"] + sparse["activations"]
        cells = [f"{sparse['weights']:.0f}", f"{dense['activations']:.1f}", f"{sparse['activations']:.1f}"]
        cells += [f"{whole:.0f} (≤ {limit:.0f})" if whole <= limit else f"**{whole:.0f}** (≤ {limit:.0f})"]
        cells += [f"{sparse['peak']:.0f}"]
        print(f"| {number} | {' | '.join(cells)} |", flush=True)
        for name, found in (("sparse", sparse), ("dense", dense)):
            figures = {f"{name}, {part}": value for part, value in found.items()}
            yield rows_of("memory", number, 1, "float32", figures, "MB")
    print()


def trunks() -> dict[str, nn.Module]:
    """The study's trunks of one width, and the dense ones that grew from it in width."""
    torch.manual_seed(0)
    families = [DENSE_1, SPARSE_32, *(family for family in GROWN if family.grow == "width")]
    found = {family.name: family.model(WIDTH, 0).eval() for family in families}
    vismoe.rebalance(found[SPARSE_32.name], [images_of(16, PIXELS)() for _ in range(32)])
    return found


def trunk(threads: tuple[int, ...]) -> Iterator[list[Row]]:
    print(f"The study's trunk of width {WIDTH}, time ÷ dense\n")
    wider = {family.name: family.dim(WIDTH) for family in GROWN if family.grow == "width"}
    columns = [f"dense, {dim} wide" for dim in wider.values()]
    print(f"| images | threads | form | dense ms | sparse | {' | '.join(columns)} |\n| {'--- | ' * (5 + len(wider))}")
    come = trunks()
    forms = {"as they come": come, "optimized": {name: vismoe.optimize(network) for name, network in come.items()}}
    for number, limits in TRUNK.items():
        for count in threads:
            torch.set_num_threads(count)
            for (form, networks), limit in zip(forms.items(), limits, strict=True):
                sides: dict[str, Side] = {name: (forward, network) for name, network in networks.items()}
                ms = medians(sides, images_of(number, PIXELS))
                dense = ms[DENSE_1.name]
                cells = [f"{dense:.2f}", with_limit(ms[SPARSE_32.name] / dense, limit)]
                cells += [f"{ms[name] / dense:.2f}" for name in wider]
                print(f"| {number} | {count} | {form} | {' | '.join(cells)} |", flush=True)
                yield rows_of(f"trunk, {form}", number, count, "float32", ms)
    print()


def main(threads: tuple[int, ...] = (1, 2), compiled: bool = True, out: Path = RESULTS) -> None:
    """Measure everything; print the tables and write the figures.

    Args:
        threads: Numbers of threads.
        compiled: Whether the dense network is measured with torch.compile too, which needs a C++ compiler.
        out: File of the figures.
    """
    print(f"{processor()}; kernels: {vismoe.kernels_in_use()}; PyTorch {torch.__version__}\n")
    rows: list[Row] = []
    for part in (trunk(threads), memory(), inference(threads, compiled), training(threads)):
        for found in part:
            rows += found
    Table(out).write(rows)


if __name__ == "__main__":
    tyro.cli(main)
