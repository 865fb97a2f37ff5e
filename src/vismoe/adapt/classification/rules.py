"""Rules that choose a recipe for a set and a network, each with its reason."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vismoe.files import counted
from vismoe.training import Recipe
from vismoe.vit import cost
from vismoe.weights import data_config

from ..budget import BUDGET, accumulation_steps, choose_dtype
from ..options import Options, TrainingDtype
from ..splits import Splits

EPOCHS = {True: 12, False: 80}
"""Max number of epochs; True: for a trained network, False: from scratch."""
FEWEST_EPOCHS = 4
"""A larger image size is not tried if a CPU has time for fewer epochs there."""
CPU_IMAGE, IMAGE = 112, 224
SCRATCH = {4: "vmoe_nano_patch4_32", 8: "vmoe_nano_patch8_64", 16: "vmoe_nano_patch16_128"}
"""Presets to train from scratch, by patch size, smallest first."""
SCRATCH_PATCHES = 8
"""Max number of patches per side of an image, from scratch."""
EVALUATED_EVERY = 4
"""Epochs between two evaluations, from scratch."""
WARMUP = 50
"""Warm-up steps for a trained network (at most a third of all steps). Adam's first steps move every weight by the
learning rate, whatever its gradient; at the full rate this would spoil the fitted linear classifier."""
BATCH = {True: 32, False: 64}
RATE = {True: 2e-4, False: 2e-3}
STEPS_OF_RATE = 120
"""With fewer steps, the learning rate of a trained network is reduced in proportion. Adam's steps first make the
features worse, and a short training cannot repair them."""
BYTES_OF_A_TOKEN = 34 * 4
"""Bytes that a block stores per token for backward, for each unit of width, in float32 (Korthikanti et al. 2022,
eq. 1)."""


@dataclass
class Choice:
    """A recipe, and the reasons for it as texts."""

    recipe: Recipe
    reasons: list[str] = field(default_factory=list)


def choose_image_size(model: nn.Module, device: torch.device) -> int:
    """The largest multiple of the patch size that is at most the network's own image size, and at most 112 pixels on a
    CPU, 224 elsewhere."""
    network_size = int(data_config(model)["input_size"][1])
    if not getattr(model, "resizable", True):
        return network_size
    patch = _patch_size(model)
    largest = min(network_size, CPU_IMAGE if device.type == "cpu" else IMAGE)
    return max(patch, largest // patch * patch)


def larger_image_size(model: nn.Module, first: int, image_side: float) -> int | None:
    """A second image size to try: the size of the images, at most twice the first and at most the network's own.

    **Arguments:**

    - `model`: the network at its own image size.
    - `first`: the size of `choose_image_size`, in pixels.
    - `image_side`: the shorter side of a typical image, in pixels.

    **Returns:** the size in pixels; None if the images or the network are not larger than the first size.
    """
    if not getattr(model, "resizable", True):
        return None
    patch = _patch_size(model)
    largest = min(float(data_config(model)["input_size"][1]), 2 * first, image_side)
    larger = int(largest // patch * patch)
    return larger if larger > first else None


def scratch_preset(image_side: float, image_size: int | None, sparse: bool) -> tuple[str, int]:
    """The preset to train from scratch, and its image size: nearest to the size of the images with at most
    SCRATCH_PATCHES patches per side, and with the smallest patches that reach it. So small images keep their detail,
    and large images do not cost more.

    **Arguments:**

    - `image_side`: the shorter side of a typical image, in pixels.
    - `image_size`: the requested image size in pixels; None: there is none.
    - `sparse`: whether the preset has experts.

    **Returns:** the name of the preset, and the image size in pixels.

    **Raises:** ValueError for a requested image size that no patch size divides.
    """
    side = image_size or image_side
    patch = next((patch for patch in SCRATCH if round(side / patch) <= SCRATCH_PATCHES), max(SCRATCH))
    if image_size is not None:  # a smaller patch if the size is not a multiple of this one
        patch = next((fits for fits in sorted(SCRATCH, reverse=True) if fits <= patch and not image_size % fits), patch)
    if image_size is not None and image_size % patch:
        low, high = patch * (image_size // patch), patch * (image_size // patch + 1)
        examples = f"{low} or {high}" if low else f"{high}"
        raise ValueError(f"image_size={image_size}: use a multiple of {patch}, such as {examples}")
    size = image_size or patch * max(1, min(SCRATCH_PATCHES, round(side / patch)))
    return f"{SCRATCH[patch]}_{'every2_e8' if sparse else 'dense'}", size


def is_better(right: Tensor, than: Tensor) -> bool:
    """Whether one classifier is better than another on the same N images by more than one standard error: the number of
    images on which only the first is right minus the number on which only the second is right is larger than the square
    root of the sum of both numbers (as in McNemar's test).

    **Arguments:**

    - `right`: (N,) bool, whether each answer of the first classifier is right.
    - `than`: the same for the second classifier.
    """
    gained, lost = int((right & ~than).sum()), int((than & ~right).sum())
    return gained - lost > math.sqrt(gained + lost)


def _patch_size(model: nn.Module) -> int:
    return int(getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))[0])


@dataclass(frozen=True)
class Work:
    """MACs of a run.

    - `image`: MACs per training image, including its share of the validation after each epoch.
    - `fixed`: MACs of everything else: features and evaluations of the linear classifier, and the test.
    """

    image: float
    fixed: float

    @staticmethod
    def of(model: nn.Module, splits: Splits, share: float, trained: bool) -> "Work":
        """Counts the MACs of a run at the network's current image size.

        **Arguments:**

        - `model`: the network.
        - `splits`: the splits of the set.
        - `share`: fraction of the blocks that are trained, 0 to 1.
        - `trained`: whether the network has trained weights, and so a linear classifier is fitted first.
        """
        forward = cost(model, data_config(model)["input_size"]).macs
        train, validation, test = len(splits.fitting.train_and_val[0]), len(splits.fitting.val), len(splits.test.val)
        evaluations = validation / train if trained else validation / train / EVALUATED_EVERY
        once = validation + test + (train + validation + test if trained else 0)
        return Work(forward * (1 + 2 * share + evaluations), forward * once)

    def affordable(self, device: torch.device, dtype: TrainingDtype) -> float:
        """Number of training images, counted once per epoch, that the budget allows; infinite on other devices than a
        CPU."""
        return math.inf if device.type != "cpu" else max(0.0, BUDGET[dtype] - self.fixed) / self.image


def choose(
    options: Options, model: nn.Module, splits: Splits, device: torch.device, share: float, processes: int = 1
) -> Choice:
    """Chooses the recipe for a network and a set. Options that are given are kept.

    **Arguments:**

    - `options`: the options.
    - `model`: the network at its image size.
    - `splits`: the splits of the set.
    - `device`: the device of the training.
    - `share`: fraction of the blocks that are trained, 0 to 1.
    - `processes`: number of processes that share each batch; default 1. The chosen batch size suits them.
    """
    data, trained, class_weights = splits.fitting, options.trained, options.class_weights
    dtype = choose_dtype(options, device)
    images = len(data.train_and_val[0])
    size = data_config(model)["input_size"]
    smallest = 2 * processes  # each process gets pairs of images
    fitting = min(BATCH[trained], images // 4 * 2) // smallest * smallest
    batch = options.batch_size or max(smallest, fitting)
    affordable = Work.of(model, splits, share, trained).affordable(device, dtype)
    epochs = options.epochs or EPOCHS[trained]
    steps = max(1, math.ceil(epochs * images / batch))
    limited = options.epochs is None and affordable < steps * batch
    if limited:
        steps = max(1, int(affordable / batch))
    steps_per_epoch = max(1, math.ceil(images / batch))
    reasons = [
        f"{size[1]} × {size[2]} pixels"
        + (", the network's only size" if not getattr(model, "resizable", True) else ""),
        f"autocast in {dtype}",
        f"{counted(steps, 'step')} of {counted(batch, 'image')} "
        + (
            f"({steps * batch / images:.1f} epochs, the limit of {BUDGET[dtype]:.0e} MACs on a CPU)"
            if limited
            else f"({epochs} {'epoch' if epochs == 1 else 'epochs'})"
        ),
    ]
    if splits.uneven:
        reasons.append(
            f"classes are imbalanced; rare classes have a larger weight in the loss (power {class_weights:g})"
            if class_weights
            else "classes are imbalanced; with --class-weights 0.5 rare classes are found more often"
        )
    accumulate = accumulation_steps(batch, _bytes_per_image(model, size), device)
    if accumulate > 1:
        reasons.append(f"gradient accumulation over {accumulate} steps, to fit in memory")
    recipe = Recipe(
        name="finetune",
        data=data.name,
        steps=steps,
        batch_size=batch,
        accumulate=accumulate,
        dtype=dtype,
        learning_rate=options.learning_rate or RATE[trained] * (min(1.0, steps / STEPS_OF_RATE) if trained else 1.0),
        warmup_steps=max(1, steps // 10, min(WARMUP, steps // 3) if trained else 0),
        layer_decay=0.75 if trained else 1.0,
        label_smoothing=0.1,
        class_weights=class_weights,
        drop_path=0.0,
        degrees=10.0,
        translate=0.0,
        scale=0.0,
        shear=0.0,
        flip=0.5,
        crop=0.5,
        evaluate_every=min(steps_per_epoch, steps) if trained else min(EVALUATED_EVERY * steps_per_epoch, steps),
        checkpoint_every=steps_per_epoch,
        keep_checkpoints=1,
        patience=4 if trained else 6,
        keep="best",
    )
    return Choice(recipe, reasons)


def _bytes_per_image(model: nn.Module, size: tuple[int, int, int]) -> int:
    """Bytes that the blocks store for backward for one image."""
    width, depth = getattr(model, "embed_dim", 384), len(getattr(model, "blocks", range(12)))
    grid = getattr(getattr(model, "patch_embed", None), "num_patches", (size[1] // 16) * (size[2] // 16))
    return int((grid + 1) * width * depth * BYTES_OF_A_TOKEN)
