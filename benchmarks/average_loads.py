"""How even the experts' load is with an average of weights (EMA), compared with the raw weights.

    python benchmarks/average_loads.py                        # digits, 1,000 steps: about ten minutes on one core
    python benchmarks/average_loads.py --steps 40 --seeds 0    # a minute; --recipe fashion_mnist: hours

Runs are trained with an EMA, with a cosine and with a constant learning rate, each with and without warm-up of the
decay. Four networks from the last checkpoint are evaluated on the validation split:

- raw: the trained weights.
- averaged: parameters and balancing biases averaged.
- raw bias: averaged parameters with the biases of the raw weights.
- rebalanced: as averaged; then `vismoe.rebalance` moves the biases by the loads of 32 training batches.

Reported are top-1, and max ÷ mean load of the worst layer. Each network is one row of results/average_loads.csv.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
import tyro
from table import Table
from torch import Tensor, nn

import vismoe
from vismoe.data import open_data
from vismoe.inference import Predictor, evaluate
from vismoe.recipes import find_recipe
from vismoe.training import Recipe, fit
from vismoe.training.checkpointer import Checkpointer
from vismoe.training.state import begin, build

RESULTS = Path(__file__).parent / "results" / "average_loads.csv"
DECAYS = ((0.99, False), (0.999, False), (0.9999, True))


def networks(recipe: Recipe, folder: Path) -> dict[str, nn.Module]:
    """The networks of a run's last checkpoint, by name."""
    data = open_data(recipe.data, recipe.split_seed)
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
    vismoe.rebalance(made["rebalanced"], training_batches(recipe, made["rebalanced"]))
    return made


def training_batches(recipe: Recipe, model: nn.Module, number: int = 32) -> Iterable[Tensor]:
    """Batches of the training split, prepared as for evaluation."""
    images = open_data(recipe.data, recipe.split_seed).train
    assert images is not None
    prepare = Predictor(model).prepare
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(number):
        places = [order[(start * recipe.batch_size + place) % len(order)] for place in range(recipe.batch_size)]
        yield torch.stack([prepare(images.sample(place))["image"] for place in places])


def main(
    recipe: str = "digits", steps: int | None = None, seeds: tuple[int, ...] = (0, 1), out: Path = RESULTS
) -> None:
    """Train with each schedule, decay and seed, and evaluate the four networks."""
    table = Table(out)
    for seed in seeds:
        for schedule in ("cosine", "constant"):
            for decay, warmup in DECAYS:
                wanted = replace(
                    find_recipe(recipe), seed=seed, schedule=schedule, average_decay=decay, average_warmup=warmup
                )
                wanted = replace(wanted, evaluate_every=10**6, checkpoint_every=10**6, device="cpu")
                wanted = wanted if steps is None else replace(wanted, steps=steps)
                with tempfile.TemporaryDirectory() as folder:
                    fit(wanted, Path(folder) / "run")
                    data = open_data(wanted.data, wanted.split_seed)
                    for name, model in networks(wanted, Path(folder) / "run").items():
                        evaluation = evaluate(model, data.val)
                        worst = max(max(load) / mean(load) for load in evaluation.load.values())
                        row = {"recipe": recipe, "steps": wanted.steps, "schedule": schedule, "decay": decay}
                        row |= {"warmup": warmup, "seed": seed, "network": name}
                        row |= {"top1": round(evaluation.metrics["top1"], 4), "max_over_mean_load": round(worst, 3)}
                        table.append(row)
                        print(*row.values(), sep="\t", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
