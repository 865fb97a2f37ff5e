"""Mixup and CutMix."""

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixes the images of a batch by timm's mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

    **Arguments:**

    - `images`: (B, C, H, W).
    - `labels`: class numbers (B,), or which classes each image shows (B, num_classes).
    - `num_classes`: number of classes.
    - `mixup`: alpha of mixup; 0: no mixup.
    - `cutmix`: alpha of CutMix; 0: no CutMix.
    - `seed`: decides all random numbers.

    **Returns:** the mixed images, and the fraction of each class in each image (B, num_classes). If both are 0, the
    arguments `images` and `labels`.
    """
    if not (mixup or cutmix):
        return images, labels
    numpy_state = np.random.get_state()  # timm draws from NumPy's generator
    np.random.seed(seed % 2**32)
    try:
        # Each image is treated as a separate class, so timm's targets are the fractions of all images in each result.
        size, image_numbers = len(images), torch.arange(len(images), device=images.device)
        mixed, shares = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=size)(images, image_numbers)
    finally:
        np.random.set_state(numpy_state)
    classes = labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
    return mixed, shares @ classes.to(shares.dtype)
