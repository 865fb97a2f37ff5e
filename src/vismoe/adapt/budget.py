"""What a device affords: the MACs of a run, the autocast dtype, the memory for images."""

import torch

from vismoe.data import ImageSet, cache_bytes
from vismoe.parallel import free_memory

from .options import Options, TrainingDtype

BUDGET = {"float32": 3e13, "bfloat16": 5e13}
"""Max MACs of a run on a CPU, including features and evaluations: about eight minutes of two cores. (Training the last
third of a ViT-S/14 at 112 pixels runs at 25 images/s in float32, 50 in bfloat16.)"""


def choose_dtype(options: Options, device: torch.device) -> TrainingDtype:
    """The autocast dtype of the training: as in the options, or for "auto" the faster one."""
    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: GPUs with tensor cores for it, and CPUs with
    instructions for it. Other devices emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def accumulation_steps(batch: int, bytes_per_image: float, device: torch.device) -> int:
    """Number of gradient accumulation steps with which a batch needs at most a third of the free memory.

    **Arguments:**

    - `batch`: number of images.
    - `bytes_per_image`: what is stored for backward for each image, in bytes.
    - `device`: the device of the training.
    """
    steps = 1
    while batch / steps * bytes_per_image > free_memory(device) / 3 and batch % (2 * steps) == 0:
        steps *= 2
    return steps


def kept_side(images: ImageSet, image_size: int) -> int | None:
    """The shorter side, in pixels, of training images that are cached in memory: twice the network's image size, so
    that crops of half the area keep their detail. None (no cache) if this needs more than a quarter of the free
    memory."""
    side = 2 * image_size
    return side if cache_bytes(images, side) < free_memory(torch.device("cpu")) / 4 else None
