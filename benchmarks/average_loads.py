"""How even the experts' load is with an average of weights (EMA), compared with the raw weights.

    python benchmarks/average_loads.py                        # digits, 1,000 steps: about ten minutes on one core
    python benchmarks/average_loads.py --steps 40 --seeds 0    # a minute; --network fashion_mnist: hours
    python benchmarks/average_loads.py --network fashion_mnist --data SETS/fashion2000 --steps 190 --seeds 0 \
        --decays 0.99 0.9999                                   # three minutes; also with --network study_64

`finetune_sets.py` makes the folder SETS/fashion2000: 2,000 training and 2,000 test images of Fashion-MNIST.
`study_64` and `study_128` are trunks of `docs/evidence.md`, of width 64 and 128 with 32 experts, trained by its recipe.

Runs are trained with an EMA, with a cosine and with a constant learning rate, each with and without warm-up of the
decay. Four networks from the last checkpoint are evaluated on the validation split:

- raw: the trained weights.
- averaged: parameters and balancing biases averaged.
- raw bias: averaged parameters with the biases of the raw weights.
- rebalanced: as averaged; then `vismoe.rebalance` moves the biases by the loads of 32 training batches. This is what
  `vismoe train` evaluates and saves.

Reported are top-1, and max ÷ mean load of the worst layer. Each network is one row of results/average_loads.csv.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
import tyro
from evidence.families import CLASSIFIER, PATCH, SPARSE, SPARSE_32
from evidence.runs import Run
from evidence.tasks import PIXELS
from table import Table
from torch import Tensor, nn

import vismoe
from vismoe.data import Data, check_images, open_data
from vismoe.inference import Predictor, evaluate
from vismoe.recipes import find_recipe
from vismoe.training import Recipe, fit
from vismoe.training.checkpointer import Checkpointer
from vismoe.training.state import begin, build

RESULTS = Path(__file__).parent / "results" / "average_loads.csv"
WARMUP_FROM = 0.9999
"""Decay from which on it is warmed up; runs of a few thousand steps are too short for it otherwise."""
STUDY = {"study_64": (64, 0.0012), "study_128": (128, 0.0011)}
"""Width and learning rate of the study's trunks with 32 experts, from results/evidence.csv."""


def recipe_of(network: str) -> Recipe:
    """The recipe of a network: one of `vismoe train`, or the study's."""
    if network not in STUDY:
        return find_recipe(network)
    width, rate = STUDY[network]
    options = {"patch_size": PATCH, "embed_dim": width, "num_heads": width // 32, "representation_size": CLASSIFIER}
    options |= {"class_token": False, "global_pool": "avg", "pos_embed_std": 0.02, "qk_norm": "scale"}
    return replace(
        Run("decisive", SPARSE_32, width, rate).recipe,
        model=SPARSE,
        data="fashion-mnist",
        image_size=PIXELS,
        num_experts=32,
        model_options=tuple(options.items()),
        flip=0.5,
    )


def networks(recipe: Recipe, folder: Path, data: Data) -> dict[str, nn.Module]:
    """The networks of a run's last checkpoint, by name."""
    state = begin(build(recipe, data), recipe)
    state.load_state_dict(Checkpointer(folder / "checkpoints").newest())
    assert state.average is not None
    averaged = state.average.module.state_dict()
    raw_bias = averaged | {name: value for name, value in state.model.state_dict().items() if "balance_" in name}
    made = {}
    for name, weights in (("raw", state.model.state_dict()), ("averaged", averaged), ("raw bias", raw_bias)):
        made[name] = build(recipe, data).eval()
        made[name].load_state_dict(weights)
    made["rebalanced"] = build(recipe, data).eval()
    made["rebalanced"].load_state_dict(averaged)
    vismoe.rebalance(made["rebalanced"], training_batches(recipe, made["rebalanced"], data))
    return made


def training_batches(recipe: Recipe, model: nn.Module, data: Data, number: int = 32) -> Iterable[Tensor]:
    """Batches of the training split, prepared as for evaluation."""
    images = data.train
    assert images is not None
    prepare = Predictor(model).prepare
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(number):
        places = [order[(start * recipe.batch_size + place) % len(order)] for place in range(recipe.batch_size)]
        yield torch.stack([prepare(images.sample(place))["image"] for place in places])


def main(
    network: str = "digits",
    data: str | None = None,
    steps: int | None = None,
    seeds: tuple[int, ...] = (0, 1),
    decays: tuple[float, ...] = (0.99, 0.999, 0.9999),
    out: Path = RESULTS,
) -> None:
    """Train with each schedule, decay and seed, and evaluate the four networks.

    Args:
        network: A recipe of vismoe train, study_64 or study_128.
        data: Data set; default: the recipe's.
        steps: Number of optimiser steps; default: the recipe's.
        seeds: Seeds of the runs.
        decays: Decays of the EMA; 0.9999 is warmed up.
        out: Table to append to.
    """
    table, base = Table(out), recipe_of(network)
    base = replace(base, data=data or base.data, steps=steps or base.steps)
    base = replace(base, evaluate_every=10**6, checkpoint_every=10**6, device="cpu")
    opened = check_images(open_data(base.data, base.split_seed), base.max_unreadable)
    name = network if data is None else f"{network} on {Path(data).name}"
    for seed in seeds:
        for schedule in ("cosine", "constant"):
            for decay in decays:
                warmup = decay >= WARMUP_FROM
                wanted = replace(base, seed=seed, schedule=schedule, average_decay=decay, average_warmup=warmup)
                with tempfile.TemporaryDirectory() as folder:
                    fit(wanted, Path(folder) / "run", data=opened)
                    for kind, model in networks(wanted, Path(folder) / "run", opened).items():
                        evaluation = evaluate(model, opened.val)
                        worst = max(max(load) / mean(load) for load in evaluation.load.values())
                        row = {"recipe": name, "steps": wanted.steps, "schedule": schedule, "decay": decay}
                        row |= {"warmup": warmup, "seed": seed, "network": kind}
                        row |= {"top1": round(evaluation.metrics["top1"], 4), "max_over_mean_load": round(worst, 3)}
                        table.append(row)
                        print(*row.values(), sep="\t", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
