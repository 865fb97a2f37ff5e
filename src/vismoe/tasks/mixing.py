"""Mixup and CutMix."""

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixes the images of a batch by timm's mixup and cutmix. Returns them with the share of each class in each image
    (B, num_classes), or the batch unchanged where both are 0.

    **Arguments:** `labels`: (B,), or (B, num_classes) with several an image; `mixup`, `cutmix`: α of Beta(α, α), from
    which shares are drawn (Zhang et al. 2018, Yun et al. 2019); `seed`: decides all random numbers.
    """
    if not (mixup or cutmix):
        return images, labels
    numpy_state = np.random.get_state()  # timm draws from NumPy's generator
    np.random.seed(seed % 2**32)
    try:
        # With each image as a class of its own, timm's targets are the share of every image in every mixed one.
        size, image_numbers = len(images), torch.arange(len(images), device=images.device)
        mixed, shares = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=size)(images, image_numbers)
    finally:
        np.random.set_state(numpy_state)
    classes = labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
    return mixed, shares @ classes.to(shares.dtype)
