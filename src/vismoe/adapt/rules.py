"""Rules that choose a recipe for a set and a network, each with its reason."""

import math
import os
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vismoe.data import ImageSet, cache_bytes
from vismoe.training import Recipe
from vismoe.vit import cost
from vismoe.weights import data_config

from .options import Options, Products
from .splits import Splits

BUDGET = {"float32": 3e13, "bfloat16": 5e13}
"""Most MACs of a run on a CPU, from the first image to the test: about eight minutes of two cores (a ViT-S/14 at 112
pixels, of which the last third is trained, takes 25 and 50 images/s)."""
EPOCHS = {True: 12, False: 80}
"""Most epochs, for a trained network and from scratch."""
FEWEST_EPOCHS = 4
"""An image size at which a CPU has time for fewer epochs is not tried."""
CPU_IMAGE, IMAGE = 112, 224
SCRATCH = {4: "vmoe_nano_patch4_32", 8: "vmoe_nano_patch8_64", 16: "vmoe_nano_patch16_128"}
"""Trunks to train from scratch, by their patch size, smallest first."""
SCRATCH_PATCHES = 8
"""Most patches along a side of an image, from scratch."""
EVALUATED_EVERY = 4
"""Epochs between two evaluations of a training from scratch."""
WARMUP = 50
"""Warm-up steps of a trained network, but at most a third of all: Adam's first steps move every weight by the whole
rate, whatever its gradient, and at the full rate they destroy what the linear classifier knew."""
BATCH = {True: 32, False: 64}
RATE = {True: 2e-4, False: 2e-3}
STEPS_OF_RATE = 120
"""Steps from which a trained network has the full rate; with fewer the rate is smaller in proportion. Adam moves each
weight by up to the rate per step, which first harms the features; a short training cannot repair them."""
BYTES_OF_A_TOKEN = 34 * 4
"""Bytes that a block keeps of a token for backward, for each unit of width, in float32 (Korthikanti et al. 2022,
eq. 1)."""


@dataclass
class Choice:
    """A recipe and the reasons for it, in words."""

    recipe: Recipe
    reasons: list[str] = field(default_factory=list)


def choose_image_size(model: nn.Module, device: torch.device) -> int:
    """The largest multiple of the patch size that is at most the network's own size, and at most the size at which a
    device trains in minutes."""
    own = int(data_config(model)["input_size"][1])
    if not getattr(model, "resizable", True):
        return own
    patch = _patch_size(model)
    largest = min(own, CPU_IMAGE if device.type == "cpu" else IMAGE)
    return max(patch, largest // patch * patch)


def larger_image_size(model: nn.Module, first: int, image_side: float) -> int | None:
    """A second size to try: that of the images, at most twice the first and at most the network's own; None where the
    images have no more pixels than the first, or the network takes no more.

    **Arguments:** `model`: the network at its own size; `first`: the size that `choose_image_size` gave; `image_side`:
    the shorter side of a typical image, in pixels.
    """
    if not getattr(model, "resizable", True):
        return None
    patch = _patch_size(model)
    largest = min(float(data_config(model)["input_size"][1]), 2 * first, image_side)
    larger = int(largest // patch * patch)
    return larger if larger > first else None


def scratch_preset(image_side: float, image_size: int | None, sparse: bool) -> tuple[str, int]:
    """The preset to train from scratch, and its image size: as near to the images' as SCRATCH_PATCHES patches a side
    allow, of the smallest patch size that does, so that small images keep their detail and large ones cost no more.

    **Arguments:** `image_side`: the shorter side of a typical image, in pixels; `image_size`: the size that is asked
    for; None: none is.
    """
    side = image_size or image_side
    patch = next((patch for patch in SCRATCH if round(side / patch) <= SCRATCH_PATCHES), max(SCRATCH))
    if image_size is not None:  # a smaller patch where the size is no multiple of this one
        patch = next((fits for fits in sorted(SCRATCH, reverse=True) if fits <= patch and not image_size % fits), patch)
    size = image_size or patch * max(1, min(SCRATCH_PATCHES, round(side / patch)))
    return f"{SCRATCH[patch]}_{'every2_e8' if sparse else 'dense'}", size


def is_better(right: Tensor, than: Tensor) -> bool:
    """Whether answers are better than others on the same images by more than chance explains: the number of images on
    which they alone are right exceeds that of the reverse by more than one standard error (McNemar's, its square root
    of both).

    **Arguments:** `right`, `than`: (N,), whether each answer is right.
    """
    gained, lost = int((right & ~than).sum()), int((than & ~right).sum())
    return gained - lost > math.sqrt(gained + lost)


def _patch_size(model: nn.Module) -> int:
    return int(getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))[0])


@dataclass(frozen=True)
class Work:
    """MACs of a run.

    - `image`: of a trained image, and of evaluating its share of the validation split once an epoch.
    - `fixed`: of all that is not training: features and evaluations of the linear classifier, and the test.
    """

    image: float
    fixed: float

    @staticmethod
    def of(model: nn.Module, splits: Splits, share: float, trained: bool) -> "Work":
        """Counts a network at its size. `share`: share of the blocks that are trained, in 0…1; `trained`: whether the
        network has trained weights, and so a linear classifier first."""
        forward = cost(model, data_config(model)["input_size"]).multiplications
        train, validation, test = len(splits.fitting.train_and_val[0]), len(splits.fitting.val), len(splits.test.val)
        evaluations = validation / train if trained else validation / train / EVALUATED_EVERY
        once = validation + test + (train + validation + test if trained else 0)
        return Work(forward * (1 + 2 * share + evaluations), forward * once)

    def affordable(self, device: torch.device, dtype: Products) -> float:
        """Number of images that there is time to train on, with repetitions; infinite on what is no CPU."""
        return math.inf if device.type != "cpu" else max(0.0, BUDGET[dtype] - self.fixed) / self.image


def choose(options: Options, model: nn.Module, splits: Splits, device: torch.device, share: float) -> Choice:
    """The recipe for a network and a set; options that are given are kept.

    **Arguments:** `share`: share of the blocks that are trained, in 0…1.
    """
    data, trained, class_weights = splits.fitting, options.trained, options.class_weights
    dtype = choose_dtype(options, device)
    images = len(data.train_and_val[0])
    size = data_config(model)["input_size"]
    batch = options.batch_size or min(BATCH[trained], max(2, images // 4 * 2))
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
        f"{steps} steps of {batch} images ({steps * batch / images:.1f} epochs"
        + (f", what {BUDGET[dtype]:.0e} MACs on a CPU allow)" if limited else ")"),
    ]
    if splits.uneven:
        reasons.append(
            f"classes are imbalanced; rare ones weigh more in the loss (power {class_weights:g})"
            if class_weights
            else "classes are imbalanced; --class-weights 0.5 finds rare ones more often"
        )
    accumulate = _micro_batches(model, batch, size, device)
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


def choose_dtype(options: Options, device: torch.device) -> Products:
    """The autocast dtype of the training: as asked, or the faster one."""
    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: a GPU with tensor cores for it, or a CPU with
    instructions for it; other devices emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def kept_side(images: ImageSet, image_size: int) -> int | None:
    """The short side at which training images are cached in memory: twice the network's image size, so that a crop of
    half the area loses nothing; None where that would take more than a quarter of the free memory."""
    side = 2 * image_size
    return side if cache_bytes(images, side) < free_memory(torch.device("cpu")) / 4 else None


def _micro_batches(model: nn.Module, batch: int, size: tuple[int, int, int], device: torch.device) -> int:
    """Gradient accumulation steps with which the activations take at most a third of the free memory."""
    width, depth = getattr(model, "embed_dim", 384), len(getattr(model, "blocks", range(12)))
    grid = getattr(getattr(model, "patch_embed", None), "num_patches", (size[1] // 16) * (size[2] // 16))
    bytes_per_image = (grid + 1) * width * depth * BYTES_OF_A_TOKEN
    parts = 1
    while batch / parts * bytes_per_image > free_memory(device) / 3 and parts < batch and batch % (2 * parts) == 0:
        parts *= 2
    return parts


def free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf
