"""Rules that choose a recipe for a set and a network, each with its reason."""

import math
import os
from dataclasses import dataclass, field

import torch
from torch import nn

from vismoe.data import ImageSet, memory_of
from vismoe.training import Recipe
from vismoe.vit import cost
from vismoe.weights import data_config

from .options import Options, Products
from .splits import Splits

BUDGET = {"float32": 3e13, "bfloat16": 5e13}
"""Most multiplications of a training on a CPU: some eight minutes of two cores (25 and 50 images/s of a ViT-S/14 at 112
pixels, the last third of which is trained)."""
EPOCHS = {True: 12, False: 80}
"""Most epochs, for a trained network and from scratch."""
CPU_IMAGE, IMAGE = 112, 224
BATCH = {True: 32, False: 64}
RATE = {True: 2e-4, False: 2e-3}
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
    if not getattr(model, "resizable", True):
        return int(data_config(model)["input_size"][1])
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))[0]
    largest = min(data_config(model)["input_size"][1], CPU_IMAGE if device.type == "cpu" else IMAGE)
    return int(max(patch, largest // patch * patch))


def choose(options: Options, model: nn.Module, splits: Splits, device: torch.device, share: float) -> Choice:
    """The recipe for a network and a set; options that are given are kept.

    **Arguments:** `share`: share of the blocks that are trained, in 0…1.
    """
    data, trained, class_weights = splits.fitting, options.trained, options.class_weights
    dtype: Products = "bfloat16" if multiplies_bfloat16(device) else "float32"
    if options.dtype != "auto":
        dtype = options.dtype
    images = len(data.parts[0])
    size = data_config(model)["input_size"]
    batch = options.batch_size or min(BATCH[trained], max(2, images // 4 * 2))
    per_image = cost(model, size).multiplications * (1 + 2 * share)
    affordable = math.inf if device.type != "cpu" else BUDGET[dtype] / per_image  # images of the whole training
    epochs = options.epochs or EPOCHS[trained]
    steps = max(1, math.ceil(epochs * images / batch))
    limited = options.epochs is None and affordable < steps * batch
    if limited:
        steps = max(1, int(affordable / batch))
    steps_per_epoch = max(1, math.ceil(images / batch))
    reasons = [
        f"{size[1]} × {size[2]} pixels"
        + (", the network's only size" if not getattr(model, "resizable", True) else ""),
        f"products in {dtype}",
        f"{steps} steps of {batch} images ({steps * batch / images:.1f} times the set"
        + (f", for {BUDGET[dtype]:.0e} multiplications on a CPU)" if limited else ")"),
    ]
    if splits.uneven:
        reasons.append(
            f"classes are uneven, and rare ones count for more in the loss (power {class_weights:g})"
            if class_weights
            else "classes are uneven: rare ones will be found less often; --class-weights 0.5 makes them count for more"
        )
    accumulate = _micro_batches(model, batch, size, device)
    if accumulate > 1:
        reasons.append(f"each batch in {accumulate} parts, to fit in memory")
    recipe = Recipe(
        name="finetune",
        data=data.name,
        steps=steps,
        batch_size=batch,
        accumulate=accumulate,
        dtype=dtype,
        learning_rate=options.learning_rate or RATE[trained],
        warmup_steps=max(1, steps // 10),
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
        evaluate_every=min(steps_per_epoch, steps) if trained else min(4 * steps_per_epoch, steps),
        checkpoint_every=steps_per_epoch,
        keep_checkpoints=1,
        patience=4 if trained else 6,
        keep="best",
    )
    return Choice(recipe, reasons)


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
    return side if memory_of(images, side) < free_memory(torch.device("cpu")) / 4 else None


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
