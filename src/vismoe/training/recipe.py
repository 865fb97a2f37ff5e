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
"""Field names, a check of each value, and the error message where it fails."""
AUGMENTATION = ("degrees", "translate", "scale", "shear", "flip", "crop", "color_jitter", "noise", "erase")
"""Fields that are arguments of `vismoe.data.training_transform`, with the same names."""


FEWEST_STEPS = 50
"""Optimiser steps below which a training is said to be short: as many as the default warm-up alone."""


@dataclass(frozen=True)
class Recipe:
    """Configuration of one training run. Every field is an option of `vismoe train`.

    **Raises:** ValueError for a value outside its range, or for values that contradict each other.
    """

    name: str = "custom"
    """Name of the run; its default folder is runs/NAME."""
    model: str = "vmoe_pico_patch2_8_every2_e8"
    """Architecture: a preset (`vismoe models` lists them), or timm:NAME for a timm model."""
    image_size: int | None = None
    """Height and width in pixels that images are resized to; default: the model's."""
    max_level: int | None = None
    """Level of white in 16-bit grey images, such as 4095 for 12-bit data; default: the network's, or 65535."""
    num_experts: int | None = None
    """Number of experts in each sparse layer; default: the preset's."""
    experts_per_token: int | None = None
    """Number of experts that each token is routed to (top-k); default: the preset's."""
    balance: Literal["preset", "bias", "loss", "none"] = "preset"
    """Load balancing: bias (a bias per expert), loss (auxiliary losses) or none; preset: the preset's."""
    noise_std: float | None = None
    """Router noise in training: standard deviation on the logits, times 1/num_experts; default: the preset's."""
    model_options: tuple[tuple[str, int | float | str], ...] = ()
    """Further model options as pairs NAME VALUE, for example capacity_factor 1.05 (see `vismoe.create_model`)."""
    weights: str = ""
    """Run or model folder with initial weights for all layers but the classifier; empty: random weights."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; it decreases linearly to 0 at the first block."""
    data: str = "digits"
    """Data set: digits, fashion-mnist, or a folder with one folder per class, or with images and a metadata.csv
    (columns file_name and label)."""
    task: str = "auto"
    """Task; auto: classification with one or several labels per image, depending on the data set."""
    max_unreadable: float = 0.1
    """Max fraction of unreadable files in a folder: they are left out; if there are more, the run does not start."""
    split_seed: int = 0
    """Seed of the random train/validation split of a data set that comes without splits."""
    group_column: str | None = None
    """Column of metadata.csv with groups of images (of one patient, video, site): each group stays in one split."""
    steps: int = 1000
    """Number of optimiser steps."""
    batch_size: int = 64
    """Images per optimiser step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    learning_rates: tuple[tuple[str, float], ...] = ()
    """Peak learning rates by parameter name, as pairs REGEX RATE.
    The first matching pattern wins; unmatched: learning_rate. All follow the same schedule."""
    optimizer: Optimizer = "adamw"
    """adamw; sgd: SGD with Nesterov momentum; momentum: SGD with plain momentum and decoupled weight decay."""
    momentum: float = 0.9
    """Momentum of the optimizers sgd and momentum."""
    schedule: Schedule = "cosine"
    """Learning rate schedule: cosine, linear (their decay counts from step 0); warmup-cosine, warmup-polynomial
    (theirs counts from the end of the warm-up); rsqrt (inverse square root); constant."""
    warmup_steps: int = 50
    """Linear warm-up steps; in a run of no more than this many steps, a tenth of its steps."""
    end_learning_rate: float = 0.0
    """Final learning rate of the schedules cosine, linear, warmup-cosine and warmup-polynomial."""
    power: float = 1.0
    """Power of the schedule warmup-polynomial; 1: linear decay."""
    timescale: int = 0
    """Steps after the warm-up until the schedule rsqrt is at √½ of the peak; 0: warmup_steps."""
    cooldown_steps: int = 0
    """Final steps of linear decay to 0 in the schedules rsqrt and constant."""
    frozen: str = ""
    """Regular expression: parameters whose names match are frozen; empty: all are trained."""
    layer_decay: float = 1.0
    """Layer-wise learning rate decay: each block's rate is this factor times the next block's; 1 disables it."""
    accumulate: int = 1
    """Gradient accumulation steps: the batch is computed in this many parts to save memory.
    The balancing bias is updated after each part."""
    average_decay: float = 0.0
    """EMA decay; the EMA weights are evaluated and saved. 0 disables the EMA."""
    average_warmup: bool = False
    """EMA warm-up: after t steps the decay is 1 − t^(−2/3), at most average_decay (timm's --model-ema-warmup)."""
    weight_decay: float | tuple[tuple[str, float], ...] = 0.05
    """Weight decay of weight matrices (decoupled except for sgd), or pairs REGEX DECAY for all parameters.
    The first matching pattern wins; unmatched: 0."""
    loss: Loss = "auto"
    """auto: softmax cross-entropy; with several labels per image, binary cross-entropy averaged over classes.
    sigmoid: binary cross-entropy summed over classes."""
    label_smoothing: float = 0.05
    """Label smoothing: fraction of the target that is spread evenly over all classes."""
    class_weights: float = 0.0
    """Class weights in the loss: (mean class size ÷ class size) to this power; 0: all classes weigh the same."""
    clip_norm: float = 1.0
    """Max gradient norm; 0 disables clipping."""
    degrees: float = 10.0
    """Augmentation: max rotation in degrees, in either direction."""
    translate: float = 0.08
    """Augmentation: max shift, as a fraction of the image size."""
    scale: float = 0.1
    """Augmentation: random scale factor within 1 ± this."""
    shear: float = 5.0
    """Augmentation: max shear in degrees."""
    flip: float = 0.0
    """Augmentation: probability of a horizontal flip."""
    crop: float = 1.0
    """Augmentation: min area of the random crop, as a fraction of the image; 1: the centre crop of evaluation."""
    color_jitter: float = 0.0
    """Augmentation: random factors within 1 ± this for brightness, contrast and saturation."""
    noise: float = 0.0
    """Augmentation: standard deviation of Gaussian noise on each pixel, where white is 1."""
    erase: float = 0.0
    """Augmentation: probability of random erasing (a random rectangle is painted over)."""
    mixup: float = 0.0
    """Mixup alpha: pairs of images are mixed with a weight from Beta(alpha, alpha); 0 disables it."""
    cutmix: float = 0.0
    """CutMix alpha: a part of one image is pasted into another, its area from Beta(alpha, alpha); 0 disables it.
    With mixup too, each batch gets one of the two at random."""
    seed: int = 0
    """Seed of the initial weights, the order of images and the augmentation."""
    evaluate_every: int = 200
    """Steps between evaluations on the validation split."""
    patience: int = 0
    """Early stopping: stop after this many evaluations in a row without a better score; 0 disables it."""
    keep: Keep = "last"
    """Weights that are saved as the model: last, or best (those with the best validation score)."""
    checkpoint_every: int = 0
    """Steps between checkpoints; each best evaluation is checkpointed too.
    0: only when the run is stopped (Ctrl-C, SIGTERM), and with keep=best at each best evaluation."""
    keep_checkpoints: int = 3
    """Number of recent checkpoints to keep, in addition to the best."""
    max_skipped: int = 10
    """A step whose loss or gradient is not finite is skipped; this many in a row end the run with an error."""
    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast dtype in training; the weights stay float32."""
    workers: int = 0
    """Number of data loading worker processes; 0: the training process. The images do not depend on it."""
    track: Tracker = "none"
    """Tracker in addition to metrics.jsonl: tensorboard (in the run folder), trackio or wandb; it must be installed."""

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_combinations()
        if self.warmup_steps and self.warmup_steps >= self.steps:
            object.__setattr__(self, "warmup_steps", self.steps // 10)
        self._check_optimisation()

    def _check_ranges(self) -> None:
        """Raises ValueError for a value that is not accepted, whatever the other fields are."""
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
            raise ValueError('name="": a name is needed, for the default run folder')
        if not self.data:
            raise ValueError('data="": accepted are "digits", "fashion-mnist" and folders of images')

    def _check_combinations(self) -> None:
        """Raises ValueError for values that contradict each other, except those that `_check_optimisation` checks."""
        if not 0 <= self.seed < 2**63 or not 0 <= self.split_seed < 2**32:
            raise ValueError(f"seed={self.seed}, split_seed={self.split_seed}: accepted are 0…2^63 − 1 and 0…2^32 − 1")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate}: it must divide batch_size={self.batch_size}")
        if self.degrees > 180 or self.shear >= 90:
            raise ValueError(f"degrees={self.degrees}, shear={self.shear}: accepted are up to 180 and below 90")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size={self.batch_size}: mixup and cutmix mix pairs of images, so it must be even")
        given = [name for name, _ in self.model_options]
        if repeated := {name for name in given if given.count(name) > 1 or name in self._named}:
            raise ValueError(f"model_options: {', '.join(sorted(repeated))} is given twice; give each option once")

    def _check_optimisation(self) -> None:
        """Raises ValueError for optimiser and schedule fields that have no effect or contradict each other."""
        decays = self.weight_decay if isinstance(self.weight_decay, tuple) else (("", self.weight_decay),)
        for _, decay in decays:
            if not 0 <= decay < float("inf"):
                raise ValueError(f"weight_decay={decay}: it must not be negative")
        for pattern in (*(pattern for pattern, _ in (*decays, *self.learning_rates)), self.frozen):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        decaying, open_ended = ("cosine", "linear", "warmup-cosine", "warmup-polynomial"), ("rsqrt", "constant")
        uses = {
            "momentum": (self.optimizer, ("sgd", "momentum")),
            "end_learning_rate": (self.schedule, decaying),
            "power": (self.schedule, ("warmup-polynomial",)),
            "timescale": (self.schedule, ("rsqrt",)),
            "cooldown_steps": (self.schedule, open_ended),
        }
        defaults = {known.name: known.default for known in fields(self)}
        for name, (chosen, accepted) in uses.items():
            if getattr(self, name) != defaults[name] and chosen not in accepted:
                raise ValueError(f"{name}={getattr(self, name)}: it needs {' or '.join(accepted)}, not {chosen}")
        if self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("momentum=0.0: sgd (Nesterov's) needs it above 0; for plain SGD use optimizer=momentum")
        if self.average_warmup and not self.average_decay:
            raise ValueError("average_warmup: it needs an EMA; set average_decay, for example to 0.9999")
        if self.end_learning_rate > self.learning_rate:
            raise ValueError(
                f"end_learning_rate={self.end_learning_rate}: it must not be above learning_rate={self.learning_rate}"
            )
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and cooldown_steps={self.cooldown_steps} are together more than "
                f"steps={self.steps}: use fewer, or more steps"
            )

    @property
    def overrides(self) -> dict[str, Any]:
        """Arguments of `create_model` that differ from the preset's."""
        return self._named | dict(self.model_options)

    @property
    def _named(self) -> dict[str, Any]:
        """Arguments of `create_model` that have their own field in the recipe."""
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
        """The recipe of a dictionary. **Raises:** ValueError for an unknown field."""
        if unknown := sorted(set(values) - {known.name for known in fields(cls)}):
            raise ValueError(f"a recipe has no field {', '.join(unknown)}")
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """The value with tuples in place of JSON's lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
