"""Checkpoints that google-research/vmoe has published, by the names of their files.

Names, classes and figures are those that its README and the configurations beside it state (github.com/google-research/
vmoe, folder vmoe/configs); none was measured here. The files hold no configuration: what else a network needs is in the
preset.
"""

from dataclasses import dataclass
from typing import Any

SQUASHED = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
CENTRE = {"crop_mode": "center", "crop_pct": 224 / 256, "interpolation": "bilinear"}


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    - `name`: its files' prefix; `preset`: the network; `members`, `experts_per_token`: where they are not the preset's
      (an ensemble's members divide the experts among them).
    - `image_size`, `classes`, `data`: what it was trained on last; `preprocessing`: how its pictures were prepared for
      evaluation, in timm's words.
    - `accuracy`: as published, of the classes' test set (of ILSVRC2012: its validation part); None: none is stated.
    """

    name: str
    preset: str
    image_size: int
    classes: int
    data: str
    accuracy: float | None
    preprocessing: dict[str, Any]
    members: int = 1
    experts_per_token: int = 2


_S32, _B16 = "vmoe_s32_last2_e8", "vmoe_b16_every2_e8"
_ALL = (
    Published("vmoe_s32_last2_ilsvrc2012_randaug_light1", _S32, 224, 1000, "ILSVRC2012", 0.731, CENTRE),
    Published("vmoe_s32_last2_ilsvrc2012_randaug_light1_ft_ilsvrc2012", _S32, 384, 1000, "ILSVRC2012", 0.759, SQUASHED),
    Published("vmoe_s32_last2_ilsvrc2012_randaug_medium", _S32, 224, 1000, "ILSVRC2012", None, CENTRE),
    Published("vmoe_b16_imagenet21k_randaug_strong", _B16, 224, 21843, "ImageNet-21k", None, CENTRE),
    Published("vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012", _B16, 384, 1000, "ILSVRC2012", 0.856, SQUASHED),
    Published("vmoe_b16_imagenet21k_randaug_strong_ft_cifar10", _B16, 128, 10, "CIFAR-10", 0.987, SQUASHED),
    Published("eee_s32_last2_ilsvrc2012", _S32, 224, 1000, "ILSVRC2012", None, CENTRE, 2, 1),
    Published("eee_s32_last2_ilsvrc2012_ft_cifar100", _S32, 128, 100, "CIFAR-100", 0.8131, SQUASHED, 2, 1),
)
PUBLISHED = {checkpoint.name: checkpoint for checkpoint in _ALL}
