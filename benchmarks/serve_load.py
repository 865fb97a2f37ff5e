"""Measures `vismoe serve` under load, against the predictor without HTTP.

    python benchmarks/serve_load.py             # ViT-S at 224 px, 32 clients, 60 s: about 3 minutes on two cores

Each client sends one image, waits for the answer, and sends the next (closed loop). Clients, service and predictor
share the machine. Every answer is compared with the predictor's. Reported are

- accepted images per second, and the predictor's at the same batch size, from the same files;
- the 50th and 99th percentile of the accepted requests' times, and the number of refusals by status;
- the service's memory over time: the largest difference from the mean after the first third;
- the time of one client alone and of the predictor for one image, in pairs, and the median of their difference.

Writes results/serve_load.csv.
"""

import http.client
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
import tyro
from PIL import Image
from sklearn.datasets import load_sample_images
from table import Table

import vismoe

RESULTS = Path(__file__).parent / "results" / "serve_load.csv"
PRESET = "vmoe_small_patch16_224_last2_e8"
BOUNDARY = "image-boundary"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@dataclass(frozen=True)
class Options:
    """Options of the measurement.

    - `model`: a trained model; default: a preset with random weights.
    - `clients`: clients at once.
    - `seconds`: duration.
    - `batch_size`: images per forward pass, of both.
    - `queue`: places in the service's queue.
    - `images`: number of different images.
    - `single`: requests of one client alone.
    """

    model: str | None = None
    clients: int = 32
    seconds: float = 60.0
    batch_size: int = 16
    queue: int = 64
    images: int = 64
    single: int = 200


@dataclass
class Load:
    """What all clients have seen: seconds until the last answer, seconds of each accepted request, statuses, wrong
    answers."""

    duration: float = 0.0
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    largest_difference: float = 0.0


def image_files(folder: Path, number: int) -> list[Path]:
    """Different crops of two photographs as JPEG files of 320 × 256 pixels."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = []
    for place in range(number):
        photo, left, top = photos[place % 2], 7 * place % 300, 5 * place % 160
        paths.append(folder / f"{place:03}.jpg")
        photo.crop((left, top, left + 320, top + 256)).save(paths[-1], quality=90)
    return paths


def random_model(folder: Path) -> str:
    """A model folder of the preset, whose logits differ from each other."""
    torch.manual_seed(0)
    model = vismoe.create_model(PRESET, num_classes=100)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    return str(vismoe.save(model, folder / "model"))


def offline(predictor: vismoe.Predictor, paths: list[Path], seconds: float) -> float:
    """Images per second of the predictor, from files to predictions."""
    predictor.predict(paths)
    started, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        predictor.predict(paths)
        images += len(paths)
    return images / passed


def body(path: Path) -> bytes:
    """A form with one image."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n\r\n'
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def start(model: str, options: Options) -> tuple["subprocess.Popen[str]", int]:
    """A running service, and its port."""
    command = [sys.executable, "-m", "vismoe", "serve", model, "--port", "0"]
    command += ["--batch-size", str(options.batch_size), "--queue", str(options.queue)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if "ready at" not in line:
        raise RuntimeError(f"the service has not started: {line}")
    return process, int(line.rpartition(":")[2])


def ask(connection: http.client.HTTPConnection, content: bytes) -> tuple[int, list[dict[str, float]], float]:
    """The status, the prediction and the seconds of one request."""
    started = time.perf_counter()
    connection.request("POST", "/v1/predict", content, HEADERS)
    response = connection.getresponse()
    text = response.read()
    seconds = time.perf_counter() - started
    return response.status, json.loads(text)["predictions"][0] if response.status == 200 else [], seconds


def run_clients(port: int, bodies: list[bytes], expected: list[dict[str, float]], options: Options) -> Load:
    """Has all clients ask for the given time."""
    load, lock, turn = Load(), threading.Lock(), count()
    begin = time.perf_counter()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < begin + options.seconds:
            place = next(turn) % len(bodies)
            status, found, seconds = ask(connection, bodies[place])
            differences = [abs(each["probability"] - expected[place].get(each["label"], 1.0)) for each in found]
            is_wrong = bool(found) and found[0]["label"] != next(iter(expected[place]))
            with lock:
                load.statuses[status] += 1
                load.wrong += is_wrong
                load.largest_difference = max(load.largest_difference, *differences, 0.0)
                if status == 200:
                    load.seconds.append(seconds)
            if status == 503:
                time.sleep(0.1)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.duration = time.perf_counter() - begin
    return load


def watch_memory(pid: int, samples: list[float], is_over: threading.Event) -> None:
    """Adds the resident memory of a process in MB, every half second."""
    while not is_over.wait(0.5):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def overhead(
    port: int, content: bytes, path: Path, predictor: vismoe.Predictor, number: int
) -> tuple[float, float, float, float]:
    """Median milliseconds of one client alone, of the predictor, and of their difference, with its standard error. Who
    comes first alternates."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def over_http() -> float:
        return 1000 * ask(connection, content)[2]

    def alone() -> float:
        started = time.perf_counter()
        predictor.predict(path)
        return 1000 * (time.perf_counter() - started)

    pairs = []
    for place in range(number + 2):
        if place % 2:
            pairs.append((over_http(), alone()))
        else:
            pairs.append((alone(), over_http())[::-1])
    connection.close()
    single, predicted = zip(*pairs[2:], strict=True)  # the first ones allocate memory
    differences = [one - other for one, other in pairs[2:]]
    low, middle, high = statistics.quantiles(differences, n=4)
    error = 0.93 * (high - low) / math.sqrt(number)  # of the median, for about normal differences
    return statistics.median(single), statistics.median(predicted), middle, error


def measure(options: Options, folder: Path) -> dict[str, object]:
    """One row of the table."""
    model = options.model or random_model(folder)
    paths = image_files(folder, options.images)
    predictor = vismoe.Predictor(model, batch_size=options.batch_size)
    expected = [dict(each.classes) for each in predictor.predict(paths)]
    per_second = offline(predictor, paths, options.seconds / 4)
    process, port = start(model, options)
    try:
        bodies = [body(path) for path in paths]
        single, alone, more, error = overhead(port, bodies[0], paths[0], predictor, options.single)
        memory: list[float] = []
        is_over = threading.Event()
        watcher = threading.Thread(target=watch_memory, args=(process.pid, memory, is_over))
        watcher.start()
        load = run_clients(port, bodies, expected, options)
        is_over.set()
        watcher.join()
    finally:
        process.terminate()
        process.wait(60)
    accepted = len(load.seconds) / load.duration
    late = memory[len(memory) // 3 :] or [0.0]
    middle = statistics.mean(late)
    quantiles = statistics.quantiles(load.seconds, n=100)
    return {
        "model": options.model or PRESET,
        "threads": torch.get_num_threads(),
        "clients": options.clients,
        "seconds": options.seconds,
        "batch_size": options.batch_size,
        "queue": options.queue,
        "images_per_second": round(accepted, 2),
        "offline_images_per_second": round(per_second, 2),
        "ratio": round(accepted / per_second, 3),
        "p50_seconds": round(quantiles[49], 3),
        "p99_seconds": round(quantiles[98], 3),
        "refusals": " ".join(f"{status}: {n}" for status, n in sorted(load.statuses.items()) if status != 200)
        or "none",
        "wrong_labels": load.wrong,
        "largest_difference": f"{load.largest_difference:.1e}",
        "memory_mb": round(middle, 1),
        "memory_change": round(max(abs(each - middle) for each in late) / middle, 4) if middle else 0.0,
        "single_ms": round(single, 2),
        "predictor_ms": round(alone, 2),
        "overhead_ms": round(more, 2),
        "overhead_error_ms": round(error, 2),
    }


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        row = measure(options, Path(folder))
    for name, value in row.items():
        print(f"{name:28}{value}")
    Table(RESULTS).append(row)


if __name__ == "__main__":
    main(tyro.cli(Options))
