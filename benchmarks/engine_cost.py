"""Compares the speed of training by a recipe with that of a bare loop around the same network.

    python benchmarks/engine_cost.py             # every case: about 20 minutes on one busy core
    python benchmarks/engine_cost.py --rounds 2  # a first look

Reported is images/s of `vismoe.training.fit` ÷ images/s of the bare loop, which has the same initial weights,
optimiser, batches, transforms, loss and clipping, and nothing else.

- Both run alternately on one core: whenever `fit` reports its status, every 20 steps, the bare loop makes 20 steps.
- `fit` is timed from the end of one status to the start of the next. This includes recording the routers, logging and,
  in separate rows, a checkpoint every 100 steps. It excludes start, evaluation and report, which a bare loop lacks.
- 40 steps of warm-up, then rounds of 100 steps: median, lowest and highest ratio over the rounds.

Writes results/engine_cost.csv. Checkpoints are synced to disk, in TMPDIR, so the disk's speed counts.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from table import Table
from torch import nn
from torch.nn import functional as F

from vismoe.data import Data, open_data, training_batches, training_transform
from vismoe.recipes import find_recipe
from vismoe.training import Recipe, Status, fit
from vismoe.training.state import begin, build
from vismoe.weights import data_config

RESULTS = Path(__file__).parent / "results" / "engine_cost.csv"
LIMIT = 0.95
WARM_UP, ROUND = 40, 100
"""Steps, both multiples of the 20 between two statuses."""

CASES = (
    find_recipe("digits"),
    find_recipe("fashion_mnist"),
    replace(find_recipe("digits"), model="vmoe_nano_patch4_32_every2_e8", batch_size=32),
)


class _EnoughError(Exception):
    """Ends a run after its last measured step."""


def bare_loop(recipe: Recipe, data: Data) -> Iterator[None]:
    """A plain training loop, which makes one step per `next()`."""
    model = build(recipe, data)
    optimizer = begin(model, recipe).optimizer
    transform = training_transform(data_config(model), **recipe.augmentation)
    model.train()
    for batch in training_batches(data.train, transform, recipe.batch_size, recipe.seed):
        loss = F.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=recipe.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield


def measure(recipe: Recipe, rounds: int) -> list[tuple[float, float]]:
    """Seconds of `fit` and of the bare loop for the ROUND steps of each round."""
    bare = bare_loop(recipe, open_data(recipe.data, recipe.split_seed))
    seconds = [(0.0, 0.0)] * rounds
    step, resumed = 0, time.perf_counter()

    def watch(status: Status) -> None:
        nonlocal step, resumed
        told = time.perf_counter()
        for _ in range(status.step - step):
            next(bare)
        begun, step = step, status.step
        done = time.perf_counter()
        if begun >= WARM_UP:
            number = (begun - WARM_UP) // ROUND
            of_fit, of_bare = seconds[number]
            seconds[number] = of_fit + told - resumed, of_bare + done - told
        if step == WARM_UP + rounds * ROUND:
            raise _EnoughError
        resumed = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(recipe, Path(folder) / "run", watch)
        except _EnoughError:
            return seconds
    raise RuntimeError(f"the run ended at step {step}, before its last counted step")


def main(rounds: int = 5, threads: int = 1, out: Path = RESULTS) -> None:
    """Measure every case without and with checkpoints; print a table and write it."""
    torch.set_num_threads(threads)
    rows = []
    for case in CASES:
        try:
            open_data(case.data)
        except FileNotFoundError as error:
            print(f"{case.data}: skipped, {error}", flush=True)
            continue
        for checkpoint_every in (0, ROUND):
            # So many steps that the run does not end: no last evaluation, and the status every 20 steps. A constant
            # learning rate, so that both sides make the same steps and the experts have the same load.
            endless = {"steps": 10**6, "evaluate_every": 10**6, "schedule": "constant", "warmup_steps": 0}
            recipe = replace(case, checkpoint_every=checkpoint_every, device="cpu", **endless)
            seconds = measure(recipe, rounds)
            engine, bare = (ROUND * recipe.batch_size / statistics.median(side) for side in zip(*seconds, strict=True))
            ratios = [of_bare / of_fit for of_fit, of_bare in seconds]
            ratio, lowest, highest = (round(figure(ratios), 3) for figure in (statistics.median, min, max))
            row = {"data": recipe.data, "model": recipe.model, "batch_size": recipe.batch_size}
            row |= {"checkpoint_every": checkpoint_every, "threads": threads, "rounds": rounds}
            row |= {"fit_images_per_second": round(engine), "bare_images_per_second": round(bare)}
            rows.append(row | {"ratio": ratio, "lowest": lowest, "highest": highest, "limit": LIMIT})
            often = f"a checkpoint every {checkpoint_every} steps" if checkpoint_every else "no checkpoints"
            print(
                f"{recipe.model} on {recipe.data}, batch {recipe.batch_size}, {often}: fit {engine:,.0f} images/s, "
                f"bare loop {bare:,.0f}, ratio {ratio} ({lowest} to {highest}; limit {LIMIT})",
                flush=True,
            )
    Table(out).write(rows)


if __name__ == "__main__":
    tyro.cli(main)
