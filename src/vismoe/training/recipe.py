"""Everything that defines one training run."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from .schedule import Schedule

Optimizer = Literal["adamw", "sgd"]
Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
Keep = Literal["last", "best"]


CHOICES = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "track": get_args(Tracker),
    "keep": get_args(Keep),
}
AUGMENTATION = ("degrees", "translate", "scale", "shear", "flip", "crop", "color_jitter", "noise", "erase")
"""Fields that `vismoe.data.training_transform` has, under the same names."""


@dataclass(frozen=True)
class Recipe:
    """One training run. Every field is an option of `vismoe train`.

    **Raises:** ValueError for values outside their range.
    """

    name: str = "custom"
    """The run's default folder is runs/NAME."""
    model: str = "vmoe_pico_patch2_8_every2_e8"
    """Preset to train from scratch (`vismoe models` lists them), or timm:NAME for any other network of timm's."""
    image_size: int | None = None
    """Height and width that images are resized to; the model's own unless said."""
    num_experts: int | None = None
    """Experts of each sparse layer; the preset's unless said."""
    experts_per_token: int | None = None
    """Experts each token goes to; the preset's unless said."""
    balance: Literal["preset", "bias", "loss", "none"] = "preset"
    """What keeps the experts' load even; preset: as the preset has it."""
    noise_std: float | None = None
    """Noise on the routers' logits in training, times 1/E; the preset's unless said."""
    drop_path: float = 0.0
    """Share of images that skip the last block in training; fewer skip each one before it (stochastic depth)."""
    data: str = "digits"
    """"digits", "fashion-mnist", or a folder: class folders, or images with a metadata.csv (file_name, label)."""
    max_unreadable: float = 0.1
    """Largest share of a folder's files that may be unreadable: they are left out; with more the run does not begin."""
    split_seed: int = 0
    """Which random part is held out, where the set comes in one piece."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Images of a step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    optimizer: Optimizer = "adamw"
    """adamw, or sgd with Nesterov's momentum of 0.9."""
    schedule: Schedule = "cosine"
    """How the rate goes on after the warm-up: cosine or linear to 0, rsqrt, constant."""
    warmup_steps: int = 50
    """Steps of linear warm-up; a tenth of the run where it is no longer than this."""
    layer_decay: float = 1.0
    """Each block's rate is this times the rate of the next one above it."""
    accumulate: int = 1
    """Parts that a batch is computed in, for less memory; each moves the balancing bias."""
    average_decay: float = 0.0
    """Of an average of weights, which is evaluated and kept in place of the last ones; 0: none."""
    weight_decay: float = 0.05
    """Decoupled decay of weight matrices."""
    label_smoothing: float = 0.05
    """Share of the target spread evenly over all classes."""
    class_weights: float = 0.0
    """How much more rare classes count in the loss: (mean class size ÷ their size) to this power; 0: no more."""
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
    flip: float = 0.0
    """Share of the training images that are mirrored, left and right."""
    crop: float = 1.0
    """Training images are random crops of at least this share of their area; 1: the centre, as at evaluation."""
    color_jitter: float = 0.0
    """Training images change brightness, contrast and saturation, each by a factor within 1 ± this."""
    noise: float = 0.0
    """Standard deviation of the noise on each pixel of the training images, of which white is 1."""
    erase: float = 0.0
    """Share of the training images of which a random rectangle is painted over (random erasing)."""
    mixup: float = 0.0
    """Mixes pairs of images with a share drawn from Beta(mixup, mixup); 0: does not."""
    cutmix: float = 0.0
    """Pastes a part of one image into another, its share drawn likewise; 0: does not. With both, either by chance."""
    seed: int = 0
    """Decides initial weights, order and augmentation."""
    evaluate_every: int = 200
    """Steps between evaluations on the held-out part."""
    patience: int = 0
    """Evaluations in a row without a better score that end the run; 0: none do."""
    keep: Keep = "last"
    """Which weights the run ends with: the last, or those of the best evaluation."""
    checkpoint_every: int = 0
    """Steps between checkpoints, beside those of the best evaluations; 0: none but when asked to stop."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept, beside the best."""
    max_skipped: int = 10
    """Steps in a row whose loss or gradient is not finite, each of them skipped, that end the run."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products in bfloat16 by autocast; weights stay float32."""
    workers: int = 0
    """Processes that prepare images; 0: this one. The images do not depend on it."""
    track: Tracker = "none"
    """Where figures go beside metrics.jsonl: tensorboard (into the run folder), trackio, wandb; to be installed."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "accumulate", "keep_checkpoints", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.image_size is not None and not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size={self.image_size}: accepted are 1 to 4096")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop}: accepted is a number above 0 and up to 1")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: it must be positive and finite")
        for name in (
            "warmup_steps",
            "weight_decay",
            "workers",
            "degrees",
            "translate",
            "shear",
            "checkpoint_every",
            "patience",
            "class_weights",
            "color_jitter",
            "noise",
            "mixup",
            "cutmix",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: it must not be negative")
        for name in (
            "scale",
            "translate",
            "label_smoothing",
            "average_decay",
            "flip",
            "erase",
            "drop_path",
            "max_unreadable",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63 or not 0 <= self.split_seed < 2**32:
            raise ValueError(f"seed={self.seed}, split_seed={self.split_seed}: accepted are 0…2^63 − 1 and 0…2^32 − 1")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: accepted is a number above 0 and up to 1")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} parts of batch_size={self.batch_size} images: uneven")
        if self.degrees > 180 or self.shear >= 90:
            raise ValueError(f"degrees={self.degrees}, shear={self.shear}: accepted are up to 180 and below 90")
        if not self.name:
            raise ValueError('name="": it is the name of the default folder')
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size={self.batch_size}: mixup and cutmix pair images, it must be even")
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        if not self.data:
            raise ValueError('data="": accepted are "digits" and folders of images')
        if self.warmup_steps and self.warmup_steps >= self.steps:
            object.__setattr__(self, "warmup_steps", self.steps // 10)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the recipe changes of its preset."""
        names = ("num_experts", "experts_per_token", "balance", "noise_std")
        named = {name: getattr(self, name) for name in names}
        named |= {"drop_path_rate": self.drop_path or None, "img_size": self.image_size}
        return {name: value for name, value in named.items() if value not in (None, "preset")}

    @property
    def augmentation(self) -> dict[str, float]:
        """What is done to training images one by one."""
        return {name: getattr(self, name) for name in AUGMENTATION}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Recipe":
        """Raises ValueError for fields that no recipe has."""
        if unknown := sorted(set(values) - {known.name for known in fields(cls)}):
            raise ValueError(f"a recipe has no field {', '.join(unknown)}")
        return cls(**values)
