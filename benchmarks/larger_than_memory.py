"""Measures a network that is larger than the memory that it may take, against what disk and processor allow.

    python benchmarks/larger_than_memory.py                                    # 14.7 B parameters: about ten minutes
    python benchmarks/larger_than_memory.py --preset vmoe_s32_every2_e32 --max-memory 1.5GiB    # a first look

It writes a model folder of the preset in bfloat16 with random weights (29.3 GB for the default), expert by expert, runs
one forward pass for each batch size, and removes the folder. Each forward pass is in a process of its own, with nothing
of the file in the system's cache. Where the disk or the memory is too small, it says so and ends.

The limit of a run is the longer of two times: the bytes that it read ÷ the bandwidth of cold reads of the same file by
as many threads; and its MACs ÷ the rate of a product of the network's own shape in bfloat16. Both are measured right
before the run and right after it, because the speed of a machine may change, and the mean counts.
Writes results/larger_than_memory.csv. Linux only.
"""

import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from table import Table
from timing import processor
from torch import Tensor
from torch.nn import functional as F

import vismoe
from vismoe.files.amounts import parse_bytes
from vismoe.vit import cost
from vismoe.weights import experts_on_disk
from vismoe.weights.folders.format import FORMAT_VERSION
from vismoe.weights.on_disk.memory import peak_bytes
from vismoe.weights.on_disk.store import READERS

RESULTS = Path(__file__).parent / "results" / "larger_than_memory.csv"
SPARE = 2 << 30
"""Bytes that stay free on the disk."""
SYNC_EVERY = 1 << 30
"""Bytes after which writes are waited for, so that they do not fill the memory."""
CHUNK, PROBE = 16 << 20, 1 << 30
"""Bytes of a read, and of all reads, that measure the disk."""


def on_meta(preset: str) -> torch.nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        network: torch.nn.Module = timm.create_model(preset)
    return network


def available_memory() -> int:
    """Bytes that the system can give to a process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def write_folder(preset: str, folder: Path) -> None:
    """Writes a model folder with random weights in bfloat16; never more than an entry of a tensor is in memory."""
    state = on_meta(preset).state_dict()
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in state.items():
        dtype = "BF16" if tensor.is_floating_point() else "I64"
        size = tensor.numel() * (2 if dtype == "BF16" else 8)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    torch.manual_seed(0)
    values = {1.0: torch.randn(max(math.prod(tensor.shape[1:]) or 1 for tensor in state.values()) + 4096).bfloat16()}
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        waiting = 0
        for name, tensor in state.items():
            for entry in entries(name, tensor, values):
                waiting += file.write(entry.contiguous().view(torch.uint8).numpy().data)
                if waiting > SYNC_EVERY:
                    os.fdatasync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    waiting = 0
        file.flush()
        os.fdatasync(file.fileno())
    config = {"architecture": preset, "num_classes": 1000, "pretrained_cfg": {}, "vismoe_format": FORMAT_VERSION}
    (folder / "config.json").write_text(json.dumps(config))


def entries(name: str, tensor: Tensor, values: dict[float, Tensor]) -> Iterator[Tensor]:
    """The parts of a random tensor, along its first dimension. Matrices are drawn with variance 1 ÷ inputs: they are
    windows of `values`, normal values by their standard deviation, which begin anywhere."""
    if not tensor.is_floating_point():
        yield torch.zeros(tensor.shape, dtype=torch.int64).flatten()
    elif tensor.ndim < 2 or name.endswith("bias"):
        yield torch.full((tensor.numel(),), float("norm" in name and name.endswith("weight")), dtype=torch.bfloat16)
    else:
        std = 1.0 if tensor.shape[0] == 1 else tensor.shape[-1] ** -0.5  # the first: embeddings
        if std not in values:
            values[std] = (values[1.0] * std).bfloat16()
        for _ in range(len(tensor)):
            start = int(torch.randint(4096, ()))
            yield values[std][start : start + tensor[0].numel()]


def drop_cache(file: Path) -> None:
    """Drops a file from the system's cache."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def bandwidth(file: Path) -> float:
    """Bytes per second of cold reads, by as many threads as read experts."""
    drop_cache(file)
    descriptor = os.open(file, os.O_RDONLY)
    chunks = -(-min(PROBE, file.stat().st_size) // CHUNK)
    buffers = [bytearray(CHUNK) for _ in range(READERS)]

    def read(thread: int) -> int:
        return sum(os.preadv(descriptor, [buffers[thread]], chunk * CHUNK) for chunk in range(thread, chunks, READERS))

    with ThreadPoolExecutor(READERS) as threads:
        start = time.perf_counter()
        total = sum(threads.map(read, range(READERS)))
        seconds = time.perf_counter() - start
    os.close(descriptor)
    return total / seconds


def rate(rows: int, width: int, hidden: int) -> float:
    """MACs per second of a product in bfloat16: the median of nine."""
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(hidden, width).bfloat16()
    times = []
    with torch.inference_mode():
        for _ in range(9):
            start = time.perf_counter()
            F.linear(x, weight)
            times.append(time.perf_counter() - start)
    return rows * width * hidden / statistics.median(times)


def measure(folder: Path, preset: str, max_memory: str, batch: int, out: Path) -> None:
    """Loads the network, runs one batch, and writes a row."""
    shape: Any = on_meta(preset)
    hidden = shape.blocks[0].mlp.fc1.out_features
    macs = cost(shape, (3, *shape.patch_embed.img_size)).macs * batch
    measured = partial(rate, batch * shape.patch_embed.num_patches, shape.embed_dim, hidden)
    before = measured()
    file = folder / "model.safetensors"
    drop_cache(file)
    start = time.perf_counter()
    predictor = vismoe.Predictor(vismoe.load(folder, max_memory=max_memory), optimized=True, dtype="bfloat16")
    opened = time.perf_counter() - start
    store = experts_on_disk(predictor.model)
    assert store is not None
    disk = bandwidth(file)
    drop_cache(file)
    images = torch.randn(batch, 3, *shape.patch_embed.img_size)
    start = time.perf_counter()
    predictor.run({"image": images})
    seconds, peak = time.perf_counter() - start, peak_bytes()
    products = (before + measured()) / 2
    disk = (disk + bandwidth(file)) / 2
    limit = max(store.bytes_read / disk, macs / products)
    every = sum(size * number for size, number in zip(store.expert_bytes, store.num_experts, strict=True))
    row = {
        "processor": processor(),
        "preset": preset,
        "max_memory": max_memory,
        "batch": batch,
        "seconds": round(seconds, 2),
        "images_per_second": round(batch / seconds, 4),
        "seconds_of_disk": round(store.bytes_read / disk, 2),
        "seconds_of_products": round(macs / products, 2),
        "share_of_limit": round(limit / seconds, 3),
        "read_gb": round(store.bytes_read / 1e9, 3),
        "named_gb": round(store.bytes_named / 1e9, 3),
        "experts_gb": round(every / 1e9, 3),
        "disk_gb_per_second": round(disk / 1e9, 3),
        "gmacs_per_second": round(products / 1e9, 1),
        "peak_gib": round(peak / 2**30, 3),
        "seconds_to_open": round(opened, 1),
    }
    Table(out).append(row)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


@contextmanager
def random_folder(preset: str, parent: Path) -> Iterator[Path]:
    """A model folder of random weights, which is removed afterwards."""
    aside = Path(tempfile.mkdtemp(prefix="larger-than-memory-", dir=parent))
    try:
        start = time.perf_counter()
        write_folder(preset, aside / "model")
        size = (aside / "model" / "model.safetensors").stat().st_size
        print(f"{size / 1e9:.1f} GB written in {time.perf_counter() - start:.0f} s", flush=True)
        yield aside / "model"
    finally:
        shutil.rmtree(aside)


def main(
    preset: str = "vmoe_15b_every2_e32",
    max_memory: str = "8GiB",
    batches: tuple[int, ...] = (1, 4, 16),
    folder: Path = Path("."),
    out: Path = RESULTS,
) -> None:
    """Measure one forward pass for each batch size.

    Args:
        preset: A sparse preset.
        max_memory: The limit, as of vismoe predict.
        batches: Images per forward pass.
        folder: Where the model folder is made, and removed.
        out: The CSV file.
    """
    available = available_memory()
    if available < parse_bytes(max_memory, "max_memory"):
        print(f"skipped: max_memory={max_memory}, but only {available / 2**30:.1f} GiB of memory are available")
        return
    needed = sum(tensor.numel() * 2 for tensor in on_meta(preset).state_dict().values()) + SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        print(
            f"skipped: {preset} needs {needed / 1e9:.1f} GB in {folder.resolve()}, where {free / 1e9:.1f} GB are free"
        )
        return
    with random_folder(preset, folder) as model:
        for batch in batches:
            arguments = (model, preset, max_memory, batch, out)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments, daemon=True)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"batch {batch}: the forward pass ended with exit code {process.exitcode}")


if __name__ == "__main__":
    tyro.cli(main)
