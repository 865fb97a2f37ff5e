"""Compares rules that move the balancing bias: the evidence for the default.

    python benchmarks/balance_rules.py
    python benchmarks/balance_rules.py --steps 3000 --rules sign-0.001 sign-0.03 log1p-0.2

A V-MoE of width 64 (k=1, experts in two of four blocks) is trained on the handwritten digits by a loop that computes
only cross_entropy(model(x), y). It starts from the default initial weights, or from a router that sends all tokens to
one expert. Reported for the worst layer, after each number of steps:

- the step from which max ÷ mean load of a batch, averaged over 10 batches, stays below 2;
- the mean of this ratio over the last 50 batches;
- this ratio, and the accuracy, on the validation split.

Each result is one row that is appended to results/balance_rules.csv.
"""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
import tyro
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from table import Table
from torch import Tensor
from torch.nn import functional as F

import vismoe
from vismoe.moe.routers import balancing

RESULTS = Path(__file__).parent / "results" / "balance_rules.csv"
BATCH = 64


def _excess(count: Tensor) -> Tensor:
    return count.float() / count.float().mean().clamp_min(1e-6)


def sign(step: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The published rule (Wang et al. 2024), on logits: a constant step."""
    return lambda bias, count: bias + step * torch.sign(1 - _excess(count)) * (count.sum() > 0)


def clipped(step: float) -> Callable[[Tensor, Tensor], Tensor]:
    """In proportion to the excess load, at most one step."""
    return lambda bias, count: bias + step * (1 - _excess(count)).clamp(-1, 1) * (count.sum() > 0)


def log(step: float) -> Callable[[Tensor, Tensor], Tensor]:
    """In proportion to the logarithm of (load ÷ mean + 1/8); the 1/8 keeps it finite."""
    return lambda bias, count: bias - step * torch.log((_excess(count) + 1 / 8) / (1 + 1 / 8)) * (count.sum() > 0)


def log1p(step: float) -> Callable[[Tensor, Tensor], Tensor]:
    """In proportion to the logarithm of (load ÷ mean + 1): smaller moves for experts without tokens. vismoe's rule."""
    return lambda bias, count: bias - step * torch.log((_excess(count) + 1) / 2) * (count.sum() > 0)


def zscore(step: float) -> Callable[[Tensor, Tensor], Tensor]:
    """In proportion to the excess load ÷ the standard deviation of the loads."""
    return lambda bias, count: bias + step * (1 - _excess(count)) / _excess(count).std(correction=0).clamp_min(1e-6)


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"none": lambda bias, count: bias} | {
    f"{rule.__name__}-{step}": rule(step)
    for rule, steps in (
        (sign, (0.001, 0.01, 0.03)),
        (clipped, (0.05,)),
        (log, (0.1,)),
        (log1p, (0.1, 0.2, 0.3)),
        (zscore, (0.01, 0.03, 0.1)),
    )
    for step in steps
}


def skew(model: torch.nn.Module) -> None:
    """Adds the same direction to all tokens and to one expert's router row, so that nearly all tokens go to it."""
    for block in model.blocks:
        if hasattr(block.mlp, "router"):
            direction = F.normalize(torch.randn(block.mlp.router.dim), dim=0)
            block.norm2.bias.data += 3 * direction
            block.mlp.router.weight.data[0] += 3 * direction


def unevenness(routing: vismoe.moe.Recording) -> float:
    """max ÷ mean load of the worst layer."""
    loads = [calls[0].load.float() for calls in routing.layers.values()]
    return max((load.max() / load.mean()).item() for load in loads)


def run(rule: str, num_experts: int, steps: tuple[int, ...], skewed: bool, seed: int) -> Iterator[dict[str, object]]:
    """Trains once. Yields a row after each of the numbers of steps."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    torch.manual_seed(seed)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=10, in_chans=1, num_experts=num_experts)
    if skewed:
        skew(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    balancing.move_bias = lambda bias, count, _: RULES[rule](bias, count)
    uneven: list[float] = []
    for step in range(1, max(steps) + 1):
        batch = torch.tensor(train)[torch.randint(len(train), (BATCH,))]
        with vismoe.record(model) as routing:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        uneven.append(unevenness(routing))
        if step not in steps:
            continue
        model.eval()
        with torch.no_grad(), vismoe.record(model) as routing:
            top1 = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
        model.train()
        late = (torch.tensor(uneven).unfold(0, min(10, step), 1).mean(1) >= 2).nonzero()
        settled = int(late[-1]) + min(10, step) if len(late) else 0
        yield {
            "rule": rule,
            "num_experts": num_experts,
            "steps": step,
            "skewed": skewed,
            "seed": seed,
            "below_2_from_step": settled if settled < step else "never",
            "last_50": round(sum(uneven[-50:]) / len(uneven[-50:]), 3),
            "held_out": round(unevenness(routing), 3),
            "top1": round(top1, 4),
        }


def main(
    rules: tuple[str, ...] = tuple(RULES),
    num_experts: tuple[int, ...] = (8, 32, 128),
    steps: tuple[int, ...] = (100, 300),
    skewed: tuple[bool, ...] = (False, True),
    seeds: tuple[int, ...] = (0,),
    threads: int = 2,
    out: Path = RESULTS,
) -> None:
    """Measure the rules; print and append one row per run and number of steps."""
    torch.set_num_threads(threads)
    table = Table(out)
    for experts, skew_router, seed, rule in product(num_experts, skewed, seeds, rules):
        for row in run(rule, experts, steps, skew_router, seed):
            table.append(row)
            print(*row.values(), sep="\t", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
