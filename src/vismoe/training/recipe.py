"""Everything that defines one training run."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Optimizer = Literal["adamw", "sgd", "momentum"]
Schedule = Literal["cosine", "linear", "rsqrt", "constant", "warmup-cosine", "warmup-polynomial"]
Loss = Literal["auto", "sigmoid"]
Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
Keep = Literal["last", "best"]

INFINITY = float("inf")
CHOICES = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "loss": get_args(Loss),
    "track": get_args(Tracker),
    "keep": get_args(Keep),
}
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "steps batch_size evaluate_every accumulate keep_checkpoints max_skipped",
        lambda value: value >= 1,
        "it must be at least 1",
    ),
    ("image_size", lambda value: value is None or 1 <= value <= 4096, "accepted are 1 to 4096"),
    ("max_level", lambda value: value is None or 1 <= value <= 65535, "accepted are 1 to 65535"),
    ("crop layer_decay", lambda value: 0 < value <= 1, "accepted is a number above 0 and up to 1"),
    ("learning_rate power learning_rates", lambda value: 0 < value < INFINITY, "it must be positive and finite"),
    (
        "clip_norm warmup_steps end_learning_rate timescale cooldown_steps workers degrees translate shear "
        "checkpoint_every patience class_weights color_jitter noise mixup cutmix",
        lambda value: 0 <= value < INFINITY,
        "it must not be negative",
    ),
    (
        "scale translate label_smoothing average_decay momentum flip erase drop_path max_unreadable",
        lambda value: 0 <= value < 1,
        "it must be at least 0 and below 1",
    ),
)
"""Names of fields, what each of their values must be, and the text of the error."""
AUGMENTATION = ("degrees", "translate", "scale", "shear", "flip", "crop", "color_jitter", "noise", "erase")
"""Fields that `vismoe.data.training_transform` has, under the same names."""


FEWEST_STEPS = 50
"""Optimiser steps below which a training is said to be short: as many as the default warm-up alone."""


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
    """Height and width that images are resized to; default: the model's own."""
    max_level: int | None = None
    """White in images of 16 bits of grey, such as 4095 for those of 12; default: the network's own, or 65535."""
    num_experts: int | None = None
    """Experts of each sparse layer; default: the preset's."""
    experts_per_token: int | None = None
    """Experts each token goes to; default: the preset's."""
    balance: Literal["preset", "bias", "loss", "none"] = "preset"
    """How the experts' load is kept even; preset: as the preset does."""
    noise_std: float | None = None
    """Noise on the routers' logits in training, times 1/E; default: the preset's."""
    model_options: tuple[tuple[str, int | float | str], ...] = ()
    """Further arguments of the network, by name, such as capacity_factor 1.05 (`vismoe.create_model` has them)."""
    weights: str = ""
    """Run or model folder whose weights the network starts from, except the classifier; empty: random weights."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; it falls linearly to 0 at the first block."""
    data: str = "digits"
    """"digits", "fashion-mnist", or a folder: class folders, or images with a metadata.csv (file_name, label)."""
    task: str = "auto"
    """The task; auto: classification with one or several labels an image, as the set has them."""
    max_unreadable: float = 0.1
    """Largest share of a folder's files that may be unreadable. They are left out; with more the run does not start."""
    split_seed: int = 0
    """Seed of the random split, where the set comes in one piece."""
    group_column: str | None = None
    """Column of metadata.csv whose values are groups of images (of one patient, video, site): each group stays on one
    side of the split."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Images of a step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    learning_rates: tuple[tuple[str, float], ...] = ()
    """Pairs of a regular expression and a peak rate: a parameter gets the rate of the first pattern that matches its
    name; unmatched: learning_rate. The schedule is the same for all."""
    optimizer: Optimizer = "adamw"
    """adamw; sgd: SGD with Nesterov momentum; momentum: SGD with plain momentum and decoupled weight decay."""
    momentum: float = 0.9
    """Momentum of sgd and momentum."""
    schedule: Schedule = "cosine"
    """Learning rate after the warm-up: cosine and linear start at step 0, under the warm-up; warmup-cosine and
    warmup-polynomial start at its end, from the peak; rsqrt; constant."""
    warmup_steps: int = 50
    """Steps of linear warm-up; a tenth of the run if the run is no longer than this."""
    end_learning_rate: float = 0.0
    """Last learning rate, of every schedule except rsqrt and constant."""
    power: float = 1.0
    """Power of warmup-polynomial; 1: linear."""
    timescale: int = 0
    """Steps after the warm-up until rsqrt is at √½ of the peak; 0: warmup_steps."""
    cooldown_steps: int = 0
    """Steps of linear decay to 0 at the end of rsqrt and constant."""
    frozen: str = ""
    """Regular expression: parameters whose names it matches are not trained; empty: all are."""
    layer_decay: float = 1.0
    """Layer-wise learning rate decay: each block's rate is this times the rate of the block after it."""
    accumulate: int = 1
    """Gradient accumulation steps: parts that a batch is computed in, for less memory. Each part moves the balancing
    bias."""
    average_decay: float = 0.0
    """EMA decay; the EMA weights are evaluated and saved. 0 disables the EMA."""
    average_warmup: bool = False
    """EMA warm-up: the decay after t steps is 1 − t^(−2/3), up to average_decay, so that early weights are forgotten
    (timm's --model-ema-warmup)."""
    weight_decay: float | tuple[tuple[str, float], ...] = 0.05
    """Weight decay of weight matrices, decoupled except for sgd. Or pairs of a regular expression and a decay, for all
    parameters: the first matching pattern wins; unmatched: 0."""
    loss: Loss = "auto"
    """auto: cross-entropy of the softmax, or with several labels an image of a sigmoid a class, mean over classes;
    sigmoid: cross-entropy of a sigmoid a class, summed over classes."""
    label_smoothing: float = 0.05
    """Label smoothing: share of the target that is spread evenly over all classes."""
    class_weights: float = 0.0
    """Weight of a class in the loss: (mean class size ÷ its size) to this power; 0: all classes weigh the same."""
    clip_norm: float = 1.0
    """Max gradient norm; 0 disables clipping."""
    degrees: float = 10.0
    """Training images are rotated by up to this many degrees either way."""
    translate: float = 0.08
    """Training images are shifted by up to this share of their size."""
    scale: float = 0.1
    """Training images are scaled by a factor within 1 ± this."""
    shear: float = 5.0
    """Training images are sheared by up to this many degrees."""
    flip: float = 0.0
    """Probability of a horizontal flip of a training image."""
    crop: float = 1.0
    """Training images are random crops of at least this share of their area; 1: the centre crop of evaluation."""
    color_jitter: float = 0.0
    """Color jitter: brightness, contrast and saturation are each multiplied by a factor within 1 ± this."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on each pixel of the training images, where white is 1."""
    erase: float = 0.0
    """Probability of random erasing: a random rectangle of a training image is painted over."""
    mixup: float = 0.0
    """Mixup: pairs of images are mixed with a share drawn from Beta(mixup, mixup); 0 disables it."""
    cutmix: float = 0.0
    """CutMix: a part of one image is pasted into another, with a share drawn from Beta(cutmix, cutmix); 0 disables it.
    With mixup too, each batch gets one of the two at random."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""
    evaluate_every: int = 200
    """Steps between evaluations on the validation split."""
    patience: int = 0
    """Early stopping: evaluations in a row without a better score that end the run; 0 disables it."""
    keep: Keep = "last"
    """Weights that are saved as the model: the last, or those of the best evaluation."""
    checkpoint_every: int = 0
    """Steps between checkpoints, beside those of the best evaluations; 0: only when the run is asked to stop."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints that are kept, beside the best."""
    max_skipped: int = 10
    """A step whose loss or gradient is not finite is skipped; this many in a row end the run."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast dtype while training; weights stay float32."""
    workers: int = 0
    """Data worker processes; 0: images are prepared in the training process. The images do not depend on it."""
    track: Tracker = "none"
    """Tracker beside metrics.jsonl: tensorboard (in the run folder), trackio or wandb; it must be installed."""

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_combinations()
        if self.warmup_steps and self.warmup_steps >= self.steps:
            object.__setattr__(self, "warmup_steps", self.steps // 10)
        self._check_optimisation()

    def _check_ranges(self) -> None:
        """Raises ValueError for a field whose value is not accepted, whatever the others are."""
        rates = {"learning_rates": [rate for _, rate in self.learning_rates]}
        for names, is_accepted, text in RANGES:
            for name in names.split():
                for value in rates.get(name, [getattr(self, name)]):
                    if not is_accepted(value):
                        raise ValueError(f"{name}={value}: {text}")
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        if not self.name:
            raise ValueError('name="": it is the name of the default folder')
        if not self.data:
            raise ValueError('data="": accepted are "digits" and folders of images')

    def _check_combinations(self) -> None:
        """Raises ValueError for fields whose values do not go together, beside those of `_check_optimisation`."""
        if not 0 <= self.seed < 2**63 or not 0 <= self.split_seed < 2**32:
            raise ValueError(f"seed={self.seed}, split_seed={self.split_seed}: accepted are 0…2^63 − 1 and 0…2^32 − 1")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} parts of batch_size={self.batch_size} images: uneven")
        if self.degrees > 180 or self.shear >= 90:
            raise ValueError(f"degrees={self.degrees}, shear={self.shear}: accepted are up to 180 and below 90")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size={self.batch_size}: mixup and cutmix pair images, it must be even")
        given = [name for name, _ in self.model_options]
        if repeated := {name for name in given if given.count(name) > 1 or name in self._named}:
            raise ValueError(f"model_options: {', '.join(sorted(repeated))} is said twice")

    def _check_optimisation(self) -> None:
        """Raises ValueError for fields of optimiser and schedule that would do nothing or contradict each other."""
        decays = self.weight_decay if isinstance(self.weight_decay, tuple) else (("", self.weight_decay),)
        for _, decay in decays:
            if not 0 <= decay < float("inf"):
                raise ValueError(f"weight_decay={decay}: it must not be negative")
        for pattern in (*(pattern for pattern, _ in (*decays, *self.learning_rates)), self.frozen):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        with_end, endless = ("cosine", "linear", "warmup-cosine", "warmup-polynomial"), ("rsqrt", "constant")
        uses = {
            "momentum": (self.optimizer, ("sgd", "momentum")),
            "end_learning_rate": (self.schedule, with_end),
            "power": (self.schedule, ("warmup-polynomial",)),
            "timescale": (self.schedule, ("rsqrt",)),
            "cooldown_steps": (self.schedule, endless),
        }
        defaults = {known.name: known.default for known in fields(self)}
        for name, (chosen, accepted) in uses.items():
            if getattr(self, name) != defaults[name] and chosen not in accepted:
                raise ValueError(f"{name}={getattr(self, name)}: it is for {', '.join(accepted)}, not for {chosen}")
        if self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("momentum=0.0: sgd has Nesterov's, which is above 0; plain SGD is optimizer=momentum")
        if self.average_warmup and not self.average_decay:
            raise ValueError("average_warmup: there is no average of weights to warm up, say average_decay=0.9999")
        if self.end_learning_rate > self.learning_rate:
            raise ValueError(
                f"end_learning_rate={self.end_learning_rate}: it must not be above learning_rate={self.learning_rate}"
            )
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and cooldown_steps={self.cooldown_steps} are more than "
                f"steps={self.steps}"
            )

    @property
    def overrides(self) -> dict[str, Any]:
        """Arguments of the network in which the recipe differs from its preset."""
        return self._named | dict(self.model_options)

    @property
    def _named(self) -> dict[str, Any]:
        """Arguments of the network that have fields of their own."""
        names = ("num_experts", "experts_per_token", "balance", "noise_std")
        named = {name: getattr(self, name) for name in names}
        named |= {"drop_path_rate": self.drop_path or None, "img_size": self.image_size}
        return {name: value for name, value in named.items() if value not in (None, "preset")}

    @property
    def augmentation(self) -> dict[str, float]:
        """Arguments of `vismoe.data.training_transform`."""
        return {name: getattr(self, name) for name in AUGMENTATION}

    def shortage(self, images: int) -> str | None:
        """Why the run is too short to learn much from a number of training images, in words; None where it is not: it
        sees each image once or more, and takes 50 steps or more."""
        one_pass = -(-images // self.batch_size)
        if self.steps < one_pass:
            return (
                f"{self.steps} steps of {self.batch_size} images are less than one pass over the {images:,} training "
                f"images, which takes {one_pass:,} steps"
            )
        if self.steps < FEWEST_STEPS:
            return f"{self.steps} steps are few, most trainings need {FEWEST_STEPS} or more"
        return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Recipe":
        """Raises ValueError for fields that no recipe has."""
        if unknown := sorted(set(values) - {known.name for known in fields(cls)}):
            raise ValueError(f"a recipe has no field {', '.join(unknown)}")
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """The same with tuples in place of JSON's lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
