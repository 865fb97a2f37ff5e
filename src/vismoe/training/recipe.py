"""Everything that defines one training run."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """One training run. Every field is an option of `vismoe train`.

    **Raises:** ValueError for values outside their range.
    """

    name: str = "custom"
    """The run's default folder is runs/NAME."""
    model: str = "vmoe_pico_patch2_8_every2_e8"
    """Preset to train from scratch; `vismoe models` lists them. Images are resized to its size."""
    num_experts: int | None = None
    """Experts of each sparse layer; the preset's unless said."""
    experts_per_token: int | None = None
    """Experts each token goes to; the preset's unless said."""
    balance: Literal["preset", "bias", "loss", "none"] = "preset"
    """What keeps the experts' load even; preset: as the preset has it."""
    data: str = "digits"
    """"digits", or a folder with train/CLASS/… and val/CLASS/… images."""
    split_seed: int = 0
    """Which random part is held out, where the set comes in one piece."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Images of a step."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW; a cosine to 0 follows the warm-up."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """Decoupled decay of weight matrices."""
    label_smoothing: float = 0.05
    """Share of the target spread evenly over all classes."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    degrees: float = 10.0
    """Training images are rotated by up to so many degrees either way."""
    translate: float = 0.08
    """Training images are shifted by up to this share of their size."""
    scale: float = 0.1
    """Training images are scaled by a factor within 1 ± this."""
    shear: float = 5.0
    """Training images are sheared by up to so many degrees."""
    seed: int = 0
    """Decides initial weights, order and augmentation."""
    evaluate_every: int = 200
    """Steps between evaluations on the held-out part."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products in bfloat16 by autocast; weights stay float32."""
    workers: int = 0
    """Processes that prepare images; 0: this one. The images do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: it must be positive and finite")
        for name in ("warmup_steps", "weight_decay", "workers", "degrees", "translate", "shear"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: it must not be negative")
        for name in ("scale", "translate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63 or not 0 <= self.split_seed < 2**32:
            raise ValueError(f"seed={self.seed}, split_seed={self.split_seed}: accepted are 0…2^63 − 1 and 0…2^32 − 1")
        if not self.data:
            raise ValueError('data="": accepted are "digits" and folders of images')
        if self.warmup_steps and self.warmup_steps >= self.steps:
            object.__setattr__(self, "warmup_steps", self.steps // 10)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the recipe changes of its preset."""
        named = {name: getattr(self, name) for name in ("num_experts", "experts_per_token", "balance")}
        return {name: value for name, value in named.items() if value not in (None, "preset")}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Recipe":
        """Raises ValueError for fields that no recipe has."""
        if unknown := sorted(set(values) - {known.name for known in fields(cls)}):
            raise ValueError(f"a recipe has no field {', '.join(unknown)}")
        return cls(**values)
