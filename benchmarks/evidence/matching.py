"""The second arm: a trained ViT learns which caption belongs to a picture, continued dense or upcycled.

    PYTHONPATH=benchmarks python -m evidence.matching            # what is missing, two runs at a time, a thread each
    PYTHONPATH=benchmarks python -m evidence.matching --left

What is not in ROOT yet is fetched and made: pictures, captions, the parent. Nothing of the ViT-S/14 below block FIRST
trains, so what comes out of these blocks is computed once for each view. The captions' vectors are fixed. Products of
the ViT are in bfloat16. A run is some minutes of one core where it has instructions for them, and begins anew if it is
killed. Appends to results/evidence_matching.csv; which queries were answered goes to results/evidence_matching/*.npz.
"""

import math
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import norm
from table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from vit_s14_parent import main as make_parent

import vismoe
from vismoe.data import evaluation_transform, training_transform

from .captions import SIDE, captions, pictures
from .kept import kept
from .packages import fetched
from .pictures import picture_of
from .rates import outwards
from .runs import name_of
from .work import RESULTS, missing, named, work

FIRST, EXPERTS = 9, 8
ARMS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "dense": {},
    "full experts": {"experts": "full"},
    "low-rank experts": {"experts": "low-rank"},
}
RECALLS = ("picture_to_caption", "caption_to_picture")
RATES, SEEDS = (2e-4, 4e-4, 8e-4), (0, 1, 2)
BATCH, EPOCHS, PILOT_EPOCHS = 128, 16, 4
TRAIN, VALIDATION = 0.7, 0.1
"""Shares of the captions; the rest is the test."""
TABLE = Table(RESULTS / "evidence_matching.csv")
CONFIG = {
    "input_size": (3, SIDE, SIDE),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
TRAINING = ("first", "second", "third", "fourth")
VIEWS = {"plain": evaluation_transform(CONFIG)} | dict.fromkeys(
    TRAINING, training_transform(CONFIG, crop=0.6, flip=0.5, color_jitter=0.3)
)


@dataclass(frozen=True)
class Run:
    """`stage`: "pilot", on the validation part, or "decisive", on the test part."""

    stage: str
    arm: str
    rate: float
    seed: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        return (self.stage, self.arm, f"{self.rate:g}", str(self.seed))

    @property
    def name(self) -> str:
        return name_of(self.key)


KEY = tuple(field.name for field in fields(Run))


@dataclass(frozen=True)
class Part:
    """Pictures by number, the caption of each (as a number among the part's own), those captions' vectors."""

    pictures: Tensor
    caption: Tensor
    vectors: Tensor


class Tower(nn.Module):
    """The blocks from FIRST on, the mean of their tokens, a linear map into the space of captions."""

    def __init__(self, parent: Path, arm: str, seed: int):
        super().__init__()
        whole: Any = vismoe.load(parent)
        if ARMS[arm]:
            whole = vismoe.upcycle(whole, EXPERTS, "last-2", seed=seed, **ARMS[arm])
        self.blocks, self.norm = whole.blocks[FIRST:], whole.norm
        for block in self.blocks:
            block.attn.fused_attn = False  # whose backward, in bfloat16 on a CPU, takes six times as long on 65 tokens
        if arm == "frozen":
            self.requires_grad_(False)
        torch.manual_seed(seed)
        self.head = nn.Linear(whole.embed_dim, whole.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start and bound

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            for block in self.blocks:
                tokens = block(tokens)
            embedded = self.head(self.norm(tokens).mean(1))
        return F.normalize(embedded.float())


def split(number: Tensor, vectors: Tensor) -> dict[str, Part]:
    """Train, validation, test, given each picture's number of a caption and the captions' vectors: no caption is in two
    of them."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(vectors)))
    first, second = round(TRAIN * len(order)), round((TRAIN + VALIDATION) * len(order))
    parts = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    place = torch.full((len(vectors),), -1)

    def part(captions: Tensor) -> Part:
        own = place.clone()
        own[captions] = torch.arange(len(captions))
        pictures = (own[number] >= 0).nonzero()[:, 0]
        return Part(pictures, own[number[pictures]], vectors[captions])

    return {name: part(captions) for name, captions in parts.items()}


@torch.no_grad()
def tokens(view: str, parent: Path, root: Path) -> np.ndarray:
    """What comes out of the blocks that do not train (pictures, tokens, 384), float16; computed once."""

    def make() -> np.ndarray:
        pixels, found = pictures(root), []
        model: Any = vismoe.load(parent)
        model.set_input_size(img_size=SIDE)
        model.eval()
        torch.default_generator.manual_seed(list(VIEWS).index(view))
        for first in range(0, len(pixels), 64):
            those = range(first, min(first + 64, len(pixels)))
            x = torch.stack([VIEWS[view]({"image": picture_of(pixels, index)})["image"] for index in those])
            with torch.autocast("cpu", torch.bfloat16):
                x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
                found.append(model.blocks[:FIRST](x).half().numpy())
        return np.concatenate(found)

    return kept(root / f"tokens-{view}.npy", make)


def train_one(run: Run, parent: Path, root: Path) -> dict[str, Any]:
    """Trains it, in this process, and gives its row."""
    torch.set_num_threads(1)
    number, vectors = captions(root)
    parts = split(torch.from_numpy(number), torch.from_numpy(np.array(vectors)))
    tower = Tower(parent, run.arm, run.seed)
    train, asked = parts["train"], parts["validation" if run.stage == "pilot" else "test"]
    views = [tokens(view, parent, root) for view in TRAINING]
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, run.rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(run.seed)
    batches = len(train.pictures) // BATCH
    steps = batches * (PILOT_EPOCHS if run.stage == "pilot" else EPOCHS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.rate, steps, pct_start=0.1)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(train.pictures), generator=generator)
        chosen = order[step % batches * BATCH :][:BATCH]
        view = torch.randint(len(views), (BATCH,), generator=generator).tolist()
        shown = zip(view, train.pictures[chosen].tolist(), strict=True)
        x = torch.from_numpy(np.stack([views[number][picture] for number, picture in shown])).float()
        loss = contrast(tower.train()(x), train.vectors, train.caption[chosen], tower.log_scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            tower.log_scale.clamp_(max=math.log(100))
    hits = recall(tower, asked, tokens("plain", parent, root))
    if run.stage != "pilot":
        (RESULTS / "evidence_matching").mkdir(exist_ok=True)
        np.savez_compressed(RESULTS / "evidence_matching" / f"{run.name}.npz", **hits)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (
        dict(zip(KEY, run.key, strict=True))
        | {"steps": steps, "parameters": sum(p.numel() for p in tower.parameters())}
        | {"trained": sum(p.numel() for p in trained)}
        | {name: round(float(hit.mean()), 5) for name, hit in hits.items()}
        | {"cpu_seconds": round(used.ru_utime + used.ru_stime)}
    )


def contrast(embedded: Tensor, vectors: Tensor, caption: Tensor, log_scale: Tensor) -> Tensor:
    """CLIP's loss (Radford et al. 2021), both ways; of pictures with the same caption none is the other's negative."""
    logits = log_scale.exp() * embedded @ vectors[caption].T
    same = caption[:, None] == caption
    same.fill_diagonal_(False)
    logits, own = logits.masked_fill(same, -torch.inf), torch.arange(len(caption))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def recall(tower: Tower, part: Part, views: np.ndarray) -> dict[str, np.ndarray]:
    """Recall@1: of each picture whether its caption comes first of all captions of the part, of each caption whether a
    picture of its comes first of all pictures."""
    tower.eval()
    found = [tower(torch.from_numpy(views[those.numpy()]).float()) for those in part.pictures.split(BATCH)]
    scores = torch.cat(found) @ part.vectors.T
    to_caption = scores.argmax(1) == part.caption
    to_picture = part.caption[scores.argmax(0)] == torch.arange(len(part.vectors))
    return dict(zip(RECALLS, (to_caption.numpy(), to_picture.numpy()), strict=True))


def smallest_effect(queries: int, discordant: float) -> float:
    """The difference of two recalls on the same queries that a two-sided paired test at 5 % finds four times in five,
    where two models disagree on a share of them (McNemar's test, normal approximation)."""
    return float((norm.ppf(0.975) + norm.ppf(0.8)) * math.sqrt(discordant / queries))


def queue(rows: Sequence[dict[str, str]]) -> list[Run]:
    """Pilots, then the arms at their best rates with every seed."""
    score = {tuple(row[name] for name in KEY): sum(float(row[name]) for name in RECALLS) for row in rows}

    def loss(run: Run) -> float | None:
        return -score[run.key] if run.key in score else None

    pilots = {arm: _rates(arm, loss) for arm in ARMS}
    found = [run for runs in pilots.values() for run in runs]
    if None in map(loss, found):
        return found
    best = [max(runs, key=lambda run: score[run.key]) for runs in pilots.values()]
    return found + [replace(run, stage="decisive", seed=seed) for seed in SEEDS for run in best]


def _rates(arm: str, loss: Callable[[Run], float | None]) -> list[Run]:
    """Pilots of RATES, and of rates beyond them."""
    return [Run("pilot", arm, rate) for rate in outwards(RATES, lambda rate: loss(Run("pilot", arm, rate)))]


def main(root: Path = Path("runs/evidence"), jobs: int = 2, left: bool = False, one: str = "") -> None:
    """Train what is missing.

    Args:
        root: Where packages and pictures go, and what comes out of the blocks that do not train.
        jobs: Runs at a time.
        left: Train nothing, say what is missing, and what the test can show: packages (600 MB) are fetched for it.
        one: The name of a run in the queue, to be trained in this process.
    """
    parent = root / "vit-s14"
    if not (left or one or parent.exists()):
        make_parent(fetched("vit-s14", root), parent)
    if one:
        row = train_one(named(one, queue(TABLE.rows())), parent, root)
        TABLE.append(row)
        print(row, flush=True)
        return

    number, vectors = captions(root)
    test = split(torch.from_numpy(number), torch.from_numpy(np.array(vectors)))["test"]
    for name, queries in (("picture to caption", len(test.pictures)), ("caption to picture", len(test.vectors))):
        found = ", ".join(f"{smallest_effect(queries, share):.3f} of {share:.0%}" for share in (0.1, 0.2, 0.3))
        print(f"{name}: {queries} queries show a difference, where two models disagree, of {found}")

    def missing_now() -> list[Run]:
        for view in VIEWS if not left else ():
            tokens(view, parent, root)  # made once, before two processes want them
        return missing(queue(TABLE.rows()), TABLE, KEY)

    command = ["evidence.matching", "--root", str(root), "--one"]
    work(missing_now, command, jobs, lambda runs: hours(runs, TABLE.rows()), left)


def hours(runs: list[Run], rows: Sequence[dict[str, str]]) -> float:
    """Processor hours that runs will take: as many a step as finished ones, at first a guess."""
    taken = [float(row["cpu_seconds"]) / int(row["steps"]) for row in rows if row["arm"] != "frozen"]
    epochs = sum(PILOT_EPOCHS if run.stage == "pilot" else EPOCHS for run in runs)
    return epochs * 60 * (median(taken) if taken else 6.0) / 3600


if __name__ == "__main__":
    tyro.cli(main)
