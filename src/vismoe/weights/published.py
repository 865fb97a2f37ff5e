"""Published checkpoints of google-research/vmoe, by file name.

Names, classes and accuracies are those of its README and configurations (github.com/google-research/vmoe, folder
vmoe/configs); none was measured here. The files have no configuration: the preset and the entry here provide it.
Options that matter only in training (dropout, capacity) are the preset's.
"""

import re
from dataclasses import dataclass
from typing import Any

PUBLISHER = "gs://vmoe_checkpoints"
"""The publisher's public bucket."""
SQUASHED = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
CENTRE = {"crop_mode": "center", "crop_pct": 224 / 256, "interpolation": "bilinear"}


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    - `name`: prefix of its files.
    - `preset`: preset of the network.
    - `image_size`: height and width in pixels.
    - `classes`: number of classes.
    - `data`: data set of its last training.
    - `accuracy`: published top-1, 0 to 1, on the test set (ILSVRC2012: validation set); None: not published.
    - `preprocessing`: timm's data configuration for evaluation (pixels in [-1, 1], as for all presets).
    - `members`: number of members of an ensemble, each with its own experts; default 1: no ensemble.
    - `experts_per_token`: experts per token of each member; used only for ensembles.
    - `representation`: whether there is a representation layer before the classifier.
    - `bfloat16_exchange`: whether inputs and outputs of the experts are rounded to bfloat16 (the configurations'
      `dispatcher.bfloat16`).
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
    representation: bool = True
    bfloat16_exchange: bool = False

    @property
    def tag(self) -> str:
        """The tag in PRESET.TAG: the checkpoint's name without the parts that the preset's name has."""
        return re.sub(r"^(?:vmoe_)?(eee_)?[sb]\d+_(?:last\d+_)?", r"\1", self.name)

    @property
    def moe(self) -> dict[str, Any]:
        """Fields of `vismoe.vit.MoEConfig` that differ from the preset's."""
        fields: dict[str, Any] = {"bfloat16_exchange": True} if self.bfloat16_exchange else {}
        if self.members > 1:
            fields |= {"ensemble_size": self.members, "experts_per_token": self.experts_per_token}
        return fields


def tags_of(preset: str) -> dict[str, Published]:
    """Published weights of a preset, by tag."""
    return {published.tag: published for published in PUBLISHED.values() if published.preset == preset}


def published_by(name: str) -> Published | None:
    """The published weights PRESET.TAG; None for any other name."""
    preset, _, tag = name.partition(".")
    return tags_of(preset).get(tag)


def tagged(preset: str, tag: str) -> Published:
    """The published weights of a preset and a tag.

    **Raises:** ValueError for an unknown tag.
    """
    tags = tags_of(preset)
    if tag not in tags:
        accepted = f"its tags are {', '.join(tags)}" if tags else "it has none"
        raise ValueError(f"{preset} has no published weights {tag!r}: {accepted}")
    return tags[tag]


_S32, _B16 = "vmoe_s32_last2_e8", "vmoe_b16_every2_e8"
_LIGHT, _STRONG = "vmoe_s32_last2_ilsvrc2012_randaug_light1", "vmoe_b16_imagenet21k_randaug_strong"
_BARE, _WHOLE = {"representation": False, "bfloat16_exchange": True}, {"bfloat16_exchange": True}
_ALL = (
    Published(_LIGHT, _S32, 224, 1000, "ILSVRC2012", 0.731, CENTRE, **_WHOLE),
    Published(f"{_LIGHT}_ft_ilsvrc2012", _S32, 384, 1000, "ILSVRC2012", 0.759, SQUASHED, **_BARE),
    Published("vmoe_s32_last2_ilsvrc2012_randaug_medium", _S32, 224, 1000, "ILSVRC2012", None, CENTRE, **_WHOLE),
    Published(_STRONG, _B16, 224, 21843, "ImageNet-21k", None, CENTRE, **_BARE),
    Published(f"{_STRONG}_ft_ilsvrc2012", _B16, 384, 1000, "ILSVRC2012", 0.856, SQUASHED, **_BARE),
    Published(f"{_STRONG}_ft_cifar10", _B16, 128, 10, "CIFAR-10", 0.987, SQUASHED, **_BARE),
    Published("eee_s32_last2_ilsvrc2012", _S32, 224, 1000, "ILSVRC2012", None, CENTRE, 2, 1, **_WHOLE),
    Published("eee_s32_last2_ilsvrc2012_ft_cifar100", _S32, 128, 100, "CIFAR-100", 0.8131, SQUASHED, 2, 1, **_WHOLE),
)
PUBLISHED = {checkpoint.name: checkpoint for checkpoint in _ALL}
