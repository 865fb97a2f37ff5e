"""Compares the time of the exported sparse model with that of its dense twin, in ONNX Runtime.

    python benchmarks/onnx_speed.py             # ViT-S at 224 px, batches 1 and 8: about 4 minutes on one core

In float32, with one thread and new images each time. The models run alternately. Reported is the median over rounds of
sparse ÷ dense. Weights are random, so the load is uneven: `uneven` is the largest load ÷ the mean load, mean over
layers. Writes results/onnx_speed.csv.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro
from table import Table

import vismoe
from vismoe.deploy import export_onnx
from vismoe.vit import dense_twin

RESULTS = Path(__file__).parent / "results" / "onnx_speed.csv"
MODELS = ("vmoe_small_patch16_224_last2_e8", "vmoe_small_patch16_224_every2_e8")
LIMITS = {1: 2.0, 8: 1.5}
"""Sparse ÷ dense to be met, by batch."""


def unevenness(model: torch.nn.Module, batch: int) -> float:
    """Largest ÷ mean load of the experts, mean over layers; 1 for a dense model."""
    with torch.no_grad(), vismoe.record(model) as routing:
        model(torch.randn(batch, 3, 224, 224))
    loads = [calls[0].load.float() for calls in routing.layers.values()]
    return statistics.mean((load.max() / load.mean()).item() for load in loads) if loads else 1.0


def sessions(folder: Path, batch: int, threads: int) -> Iterator[tuple[str, onnxruntime.InferenceSession, float]]:
    """Each model exported for `batch` images: its name, session and unevenness."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name in (*MODELS, dense_twin(MODELS[0])):
        torch.manual_seed(0)
        model = vismoe.create_model(name, num_classes=1000).eval()
        torch.nn.init.normal_(model.head.weight, std=0.02)  # presets have a head of zeros: every export would agree
        done = export_onnx(model, folder / f"{name}_{batch}.onnx", batch_size=batch)
        yield name, onnxruntime.InferenceSession(done.path, options), unevenness(model, batch)


def measure(opened: dict[str, onnxruntime.InferenceSession], batch: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each model in each round, after two rounds of warm-up. All models get the same images."""
    generator = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in opened}
    for round in range(rounds + 2):
        pixels = generator.standard_normal((batch, 3, 224, 224), dtype=np.float32)
        for name, session in opened.items():
            start = time.perf_counter()
            session.run(None, {"pixels": pixels})
            if round >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main(rounds: int = 40, threads: int = 1, out: Path = RESULTS) -> None:
    """Measure every model; print a table and write it."""
    torch.set_num_threads(threads)
    rows, dense = [], dense_twin(MODELS[0])
    print(f"{'model':36}{'batch':>6}{'ms':>9}{'dense ms':>10}{'ratio':>7}{'limit':>7}{'uneven':>8}")
    for batch, limit in LIMITS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = list(sessions(Path(folder), batch, threads))
            times = measure({name: session for name, session, _ in found}, batch, rounds)
        for name, _, uneven in found[: len(MODELS)]:
            ratio = statistics.median(a / b for a, b in zip(times[name], times[dense], strict=True))
            row = {
                "model": name,
                "batch": batch,
                "threads": threads,
                "rounds": rounds,
                "sparse_ms": round(statistics.median(times[name]), 2),
                "dense_ms": round(statistics.median(times[dense]), 2),
                "ratio": round(ratio, 3),
                "limit": limit,
                "uneven": round(uneven, 2),
            }
            rows.append(row)
            figures = f"{row['sparse_ms']:9}{row['dense_ms']:10}{row['ratio']:7}{limit:7}{row['uneven']:8}"
            print(f"{name:36}{batch:6}{figures}", flush=True)
    Table(out).write(rows)


if __name__ == "__main__":
    tyro.cli(main)
