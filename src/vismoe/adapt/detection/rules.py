"""Rules that choose a detector's input size and its recipe, each with its reason."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vismoe.files import counted
from vismoe.training import Recipe
from vismoe.vit import cost

from ..budget import accumulation_steps
from ..options import Options, TrainingDtype
from ..splits import Splits

BUDGET: dict[bool, dict[TrainingDtype, float]] = {
    True: {"float32": 2.5e13, "bfloat16": 6.5e13},
    False: {"float32": 1.7e13, "bfloat16": 2e13},
}
"""Max MACs of a training on a CPU: about eight minutes of one core. True: for a trained network. (The last two blocks
of a ViT-S/14 at 336 × 448 pixels train at 10 images/s of one core in bfloat16, a small network from scratch, with its
narrow layers, at 12.)"""
EPOCHS, FEWEST_IMAGES = 100, 5000
"""Number of epochs, and the fewest images, each counted once per epoch, of a training without a limit."""
FEWEST_STEPS = 1250
"""Batches are made so small that there are at least this many steps, because the head is always new."""
SMALLEST_BATCH, LARGEST_BATCH = 4, 32
SMALLEST_OBJECT = {True: 28, False: 20}
"""Side in pixels of the input that a typical object of the class with the smallest objects should have: two patches of
a trained network, two and a half cells of a convolutional stem."""
SIDES = {True: (224, 448), False: (160, 448)}
"""Limits of the longer side of the input on a CPU; elsewhere twice the upper one. True: for a trained network."""
RATE, TRUNK_SHARE = 2e-3, 1 / 20
"""Peak learning rate, and what share of it a trained trunk gets. At the full rate its features were spoiled."""
EVALUATIONS = 10
"""Number of evaluations during a training."""
BYTES = 0.04
"""Bytes that are stored for backward per MAC of the trained part."""
SCRATCH = "vmoe_nano_patch16_128"
"""Preset to train from scratch."""


@dataclass(frozen=True)
class InputSize:
    """The size of a detector's input, in pixels, and the reason for it."""

    height: int
    width: int
    reason: str


def choose_size(options: Options, splits: Splits, patch: tuple[int, int], device: torch.device) -> InputSize:
    """Chooses the input size: the aspect ratio of a typical image, and so large that small objects have some patches.

    **Arguments:**

    - `options`: `image_size`, if it is given, is the longer side.
    - `splits`: the splits of the set.
    - `patch`: (vertical, horizontal) side of a patch in pixels; both sides of the input are multiples of it.
    - `device`: the device of the training.
    """
    width, height = (splits.summary[side]["median"] for side in ("width", "height"))
    longest, trained = max(width, height), options.trained
    if options.image_size is not None:
        side, reason = float(options.image_size), "as given"
    else:
        smallest = smallest_objects(splits)
        low, high = SIDES[trained]
        high = high if device.type == "cpu" else 2 * high
        wanted = longest * SMALLEST_OBJECT[trained] / smallest
        side = min(max(wanted, low), high, max(longest, low))
        reason = f"where the class with the smallest objects has {smallest * side / longest:.0f} pixels"
    sizes = (_multiple(side * height / longest, patch[0]), _multiple(side * width / longest, patch[1]))
    return InputSize(*sizes, f"input of {sizes[0]} × {sizes[1]} pixels, {reason}")


def _multiple(length: float, patch: int) -> int:
    return max(1, round(length / patch)) * patch


def smallest_objects(splits: Splits) -> float:
    """The median side, in pixels, of the objects of the class in which it is smallest: the square root of the area."""
    images = splits.fitting.train_and_val[0]
    boxes, classes, ignored = (
        torch.cat([images.further[name](index) for index in range(len(images))])
        for name in ("boxes", "classes", "ignored")
    )
    boxes, classes = boxes.as_subclass(torch.Tensor).float()[~ignored], classes[~ignored]
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    return min(float(sides[classes == number].median()) for number in classes.unique().tolist())


@dataclass(frozen=True)
class Work:
    """MACs of a detector's training.

    - `image`: MACs of a training image.
    - `trained`: MACs of a forward pass through the part that is trained.
    - `keeps_tokens`: whether the blocks before run only once, so that `image` does not count them.
    """

    image: float
    trained: float
    keeps_tokens: bool

    @staticmethod
    def of(network: Any, first_trained: int, keeps_tokens: bool) -> "Work":
        """Counts the MACs.

        **Arguments:**

        - `network`: the detector.
        - `first_trained`: number of the first block that is trained.
        - `keeps_tokens`: whether the blocks before run only once.
        """
        shape = (network.in_chans, *network.img_size)
        whole, trunk = (float(cost(part, shape).macs) for part in (network, network.trunk))
        frozen = trunk * first_trained / (len(getattr(network.trunk, "blocks", ())) or 1)
        trained = whole - frozen
        return Work(3 * trained + (0 if keeps_tokens else frozen), trained, keeps_tokens)


def choose_recipe(
    options: Options,
    network: nn.Module,
    splits: Splits,
    device: torch.device,
    dtype: TrainingDtype,
    work: Work,
    processes: int,
) -> tuple[Recipe, list[str]]:
    """Chooses the recipe for a detector and a set. Options that are given are kept.

    **Arguments:**

    - `options`: the options.
    - `network`: the detector.
    - `splits`: the splits of the set.
    - `device`: the device of the training.
    - `dtype`: the autocast dtype.
    - `work`: the MACs of a training image.
    - `processes`: number of processes that share each batch.

    **Returns:** the recipe, and the reasons for it as texts.
    """
    images, trained = len(splits.fitting.train_and_val[0]), options.trained
    affordable = BUDGET[trained][dtype] / work.image if device.type == "cpu" else math.inf
    wanted = options.epochs * images if options.epochs is not None else max(EPOCHS * images, FEWEST_IMAGES)
    limited = options.epochs is None and affordable < wanted
    seen = affordable if limited else wanted
    multiple = 2 * processes if processes > 1 else 1
    power = 2 ** int(math.log2(max(1.0, seen / FEWEST_STEPS)))
    batch = options.batch_size or -(-min(max(power, SMALLEST_BATCH), LARGEST_BATCH, images) // multiple) * multiple
    steps = max(1, math.ceil(seen / batch))
    reasons = [
        f"autocast in {dtype}",
        f"{counted(steps, 'step')} of {counted(batch, 'image')} ({steps * batch / images:.1f} epochs"
        + (f", the limit of {BUDGET[trained][dtype]:.1e} MACs on a CPU)" if limited else ")"),
    ]
    accumulate = accumulation_steps(batch, work.trained * BYTES, device)
    if accumulate > 1:
        reasons.append(f"gradient accumulation over {accumulate} steps, to fit in memory")
    every, rate = max(1, steps // EVALUATIONS), options.learning_rate or RATE
    trains_trunk = any(name.startswith("trunk.") and p.requires_grad for name, p in network.named_parameters())
    recipe = Recipe(
        name="finetune",
        data=splits.fitting.name,
        steps=steps,
        batch_size=batch,
        accumulate=accumulate,
        dtype=dtype,
        learning_rate=rate,
        learning_rates=(("^trunk\\.", rate * TRUNK_SHARE),) if trained and trains_trunk else (),
        warmup_steps=max(1, min(50, steps // 10)),
        label_smoothing=0.0,
        average_decay=0.99,
        average_warmup=True,
        drop_path=0.0,
        degrees=0.0,
        translate=0.1,
        scale=0.4,
        shear=0.0,
        flip=0.5,
        crop=0.75,
        color_jitter=0.2 if getattr(network, "in_chans", 3) in (1, 3) else 0.0,
        evaluate_every=every,
        checkpoint_every=every,
        keep_checkpoints=1,
        keep="best",
    )
    return recipe, reasons
