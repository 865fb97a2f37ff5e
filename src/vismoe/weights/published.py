"""Checkpoints that google-research/vmoe has published, by the names of their files.

Names, classes and figures are those that its README and the configurations beside it state (github.com/google-research/
vmoe, folder vmoe/configs); none was measured here. The files hold no configuration: what else a network needs is in the
preset and in the entry here. What those configurations set for training alone (dropout, capacity) is the preset's.
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

    - `name`: its files' prefix; `preset`: the network; `members`, `experts_per_token`: where they are not the preset's
      (an ensemble's members divide the experts among them).
    - `image_size`, `classes`, `data`: what it was trained on last; `preprocessing`: how its images were prepared for
      evaluation, in timm's words (pixels in [-1, 1], as all presets have them).
    - `accuracy`: as published, of the classes' test set (of ILSVRC2012: its validation part); None: none is stated.
    - `representation`: whether there is a layer of that name before the classifier; `bfloat16_exchange`: whether what
      experts get and give is rounded to bfloat16 (the configurations' `dispatcher.bfloat16`).
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
        """What stands behind the preset's name and a dot: the name without what the preset's says already."""
        return re.sub(r"^(?:vmoe_)?(eee_)?[sb]\d+_(?:last\d+_)?", r"\1", self.name)

    @property
    def moe(self) -> dict[str, Any]:
        """Fields of `vismoe.vit.MoEConfig` that are not the preset's."""
        own: dict[str, Any] = {"bfloat16_exchange": True} if self.bfloat16_exchange else {}
        if self.members > 1:
            own |= {"ensemble_size": self.members, "experts_per_token": self.experts_per_token}
        return own


def tags_of(preset: str) -> dict[str, Published]:
    """A preset's published weights, by their tags."""
    return {published.tag: published for published in PUBLISHED.values() if published.preset == preset}


def published_by(name: str) -> Published | None:
    """The published weights that a name PRESET.TAG is of, if any."""
    preset, _, tag = name.partition(".")
    return tags_of(preset).get(tag)


def tagged(preset: str, tag: str) -> Published:
    """A preset's published weights of this tag.

    **Raises:** ValueError for another tag.
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
