"""Images of a batch mixed with each other."""

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """A batch as timm's mixup and cutmix make it, with the share of each class in each image (B, num_classes); as it
    is where both are 0.

    **Arguments:** `labels`: (B,), or (B, num_classes) of several an image; `mixup`, `cutmix`: shares are drawn from
    Beta(α, α) (Zhang et al. 2018, Yun et al. 2019); `seed`: alone decides the draw.
    """
    if not (mixup or cutmix):
        return images, labels
    before = np.random.get_state()  # timm draws from NumPy's generator
    np.random.seed(seed % 2**32)
    try:
        # Told that every image is a class of its own, timm's mixup says which it made of which.
        size, own = len(images), torch.arange(len(images), device=images.device)
        mixed, shares = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=size)(images, own)
    finally:
        np.random.set_state(before)
    whole = labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
    return mixed, shares @ whole.to(shares.dtype)
