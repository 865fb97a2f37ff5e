"""The recipe: everything that defines a training run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
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
        "steps batch_size evaluate_every accumulate keep_checkpoints max_skipped expert_parallel",
        lambda value: value >= 1,
        "it must be at least 1",
    ),
    ("image_size", lambda value: value is None or 1 <= value <= 4096, "accepted are 1 to 4096"),
    ("max_level", lambda value: value is None or 1 <= value <= 65535, "accepted are 1 to 65535"),
    ("seed", lambda value: 0 <= value < 2**63, "accepted are 0 to 2^63 − 1"),
    ("split_seed", lambda value: 0 <= value < 2**32, "accepted are 0 to 2^32 − 1"),
    ("degrees", lambda value: 0 <= value <= 180, "accepted are 0 to 180"),
    ("shear", lambda value: 0 <= value < 90, "accepted are at least 0 and below 90"),
    ("crop layer_decay", lambda value: 0 < value <= 1, "accepted is a number above 0 and up to 1"),
    (
        "learning_rate power learning_rates hang_timeout",
        lambda value: 0 < value < INFINITY,
        "it must be positive and finite",
    ),
    (
        "clip_norm warmup_steps end_learning_rate timescale cooldown_steps workers translate "
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
"""Field names, a check of each value, and the error message if the check fails."""
AUGMENTATION = ("degrees", "translate", "scale", "shear", "flip", "crop", "color_jitter", "noise", "erase")
"""Fields that are arguments of `vismoe.data.training_transform`, with the same names."""


FEWEST_STEPS = 50
"""Number of steps below which training is called short: the length of the default warm-up."""


@dataclass(frozen=True)
class Recipe:
    """Configuration of one training run. Every field is an option of `vismoe train`.

    **Raises:** ValueError for a value outside its range, or for values that contradict each other.
    """

    name: str = "custom"
    """Name of the run; the default run folder is runs/NAME."""
    model: str = "vmoe_pico_patch2_8_every2_e8"
    """Architecture: a preset (`vismoe models` lists them), or timm:NAME for a timm model."""
    image_size: int | None = None
    """Image height and width in pixels; default: the model's."""
    max_level: int | None = None
    """Level that is white in 16-bit grey images, for example 4095 for 12-bit data; default: the one stored with the
    initial weights, or 65535."""
    num_experts: int | None = None
    """Number of experts in each sparse layer; default: the preset's."""
    experts_per_token: int | None = None
    """Number of experts that each token is routed to (top-k); default: the preset's."""
    balance: Literal["preset", "bias", "loss", "none"] = "preset"
    """Load balancing: bias (a bias per expert), loss (auxiliary losses) or none; preset: the preset's."""
    noise_std: float | None = None
    """Router noise in training: its standard deviation on the logits is this value ÷ num_experts; default: the
    preset's."""
    model_options: tuple[tuple[str, int | float | str], ...] = ()
    """Other model options as pairs NAME VALUE, for example capacity_factor 1.05 (see `vismoe.create_model`)."""
    weights: str = ""
    """Run folder or model folder with the initial weights of all layers except the classifier; empty: random
    weights."""
    drop_path: float = 0.0
    """Stochastic depth: probability of skipping the last block in training; it decreases linearly to 0 at the first
    block."""
    data: str = "digits"
    """Data set: digits, fashion-mnist, or a folder that has a folder of images for each class, or images and a
    metadata.csv with the columns file_name and label, or images with boxes (COCO, Pascal VOC, YOLO)."""
    task: str = "auto"
    """Name of the task; auto: detection if the data set has boxes, otherwise classification with one or several labels
    per image, as in the data set."""
    max_unreadable: float = 0.1
    """Largest fraction of unreadable image files, 0 to 1. They are left out; if there are more, training does not
    start."""
    split_seed: int = 0
    """Seed of the random training/validation split; used only if the data set has no splits."""
    group_column: str | None = None
    """Column of metadata.csv with groups of images (of one patient, video, site); each group stays in one split."""
    steps: int = 1000
    """Number of optimiser steps."""
    batch_size: int = 64
    """Number of images per optimiser step, over all processes."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    learning_rates: tuple[tuple[str, float], ...] = ()
    """Peak learning rates by parameter name, as pairs REGEX RATE. The first pattern that matches a name is used; the
    other parameters use learning_rate. All rates follow the same schedule."""
    optimizer: Optimizer = "adamw"
    """Optimizer: adamw, sgd (with Nesterov momentum), or momentum (SGD with plain momentum and decoupled weight
    decay)."""
    momentum: float = 0.9
    """Momentum of the optimizers sgd and momentum."""
    schedule: Schedule = "cosine"
    """Learning rate schedule: cosine or linear (decay counted from step 0), warmup-cosine or warmup-polynomial (decay
    counted from the end of the warm-up), rsqrt (inverse square root), or constant."""
    warmup_steps: int = 50
    """Number of warm-up steps, in which the learning rate rises linearly from 0. If a run has no more steps than this,
    a tenth of its steps is used."""
    end_learning_rate: float = 0.0
    """Final learning rate of the schedules cosine, linear, warmup-cosine and warmup-polynomial."""
    power: float = 1.0
    """Exponent of the schedule warmup-polynomial; 1: linear decay."""
    timescale: int = 0
    """Schedule rsqrt: number of steps after the warm-up until the rate is √½ of the peak; 0: warmup_steps."""
    cooldown_steps: int = 0
    """Schedules rsqrt and constant: number of final steps in which the rate decays linearly to 0."""
    frozen: str = ""
    """Regular expression: parameters with matching names are frozen; empty: all parameters are trained."""
    layer_decay: float = 1.0
    """Layer-wise learning rate decay: the rate of a block is this factor times the rate of the next block; 1: no
    decay."""
    accumulate: int = 1
    """Gradient accumulation: number of micro-batches that a batch is divided into, to save memory. The balancing bias
    is updated after each micro-batch."""
    average_decay: float = 0.0
    """EMA decay, at least 0 and below 1; the EMA weights are evaluated and saved. 0: no EMA."""
    average_warmup: bool = False
    """EMA warm-up, as timm's --model-ema-warmup: after t steps the decay is 1 − t^(−2/3), at most average_decay."""
    weight_decay: float | tuple[tuple[str, float], ...] = 0.05
    """Weight decay of the weight matrices (decoupled, except for sgd). Or pairs REGEX DECAY for any parameters: the
    first pattern that matches a name is used; the other parameters have none."""
    loss: Loss = "auto"
    """Loss. auto: softmax cross-entropy, or, with several labels per image, binary cross-entropy averaged over classes;
    sigmoid: binary cross-entropy summed over classes."""
    label_smoothing: float = 0.05
    """Label smoothing: fraction of the target that is spread evenly over all classes, at least 0 and below 1; 0 with
    boxes."""
    class_weights: float = 0.0
    """Class weights in the loss: (mean class size ÷ class size) to the power of this value; 0: equal weights."""
    clip_norm: float = 1.0
    """Gradient clipping: largest norm of the gradient; 0: no clipping."""
    degrees: float = 10.0
    """Augmentation: largest rotation in degrees, in either direction; 0 with boxes."""
    translate: float = 0.08
    """Augmentation: largest shift, as a fraction of the image size."""
    scale: float = 0.1
    """Augmentation: random scale factor within 1 ± this; with boxes between 1 − this and 1 ÷ √crop."""
    shear: float = 5.0
    """Augmentation: largest shear in degrees, in either direction; 0 with boxes."""
    flip: float = 0.0
    """Augmentation: probability of a horizontal flip."""
    crop: float = 1.0
    """Augmentation: smallest area of the random crop, as a fraction of the image; 1: centre crop, as in evaluation.
    With boxes: the smallest part of an image that stays visible when it is enlarged; 1: it is not enlarged."""
    color_jitter: float = 0.0
    """Augmentation: random factors within 1 ± this for brightness, contrast and saturation."""
    noise: float = 0.0
    """Augmentation: standard deviation of Gaussian noise on each pixel, where white is 1."""
    erase: float = 0.0
    """Augmentation: probability of random erasing (a random rectangle gets the mean colour)."""
    mixup: float = 0.0
    """Mixup alpha: pairs of images are mixed with a weight from Beta(alpha, alpha); 0: no mixup."""
    cutmix: float = 0.0
    """CutMix alpha: a rectangle of one image replaces that of another, its area from Beta(alpha, alpha); 0: no CutMix.
    With both mixup and cutmix, one of them is chosen at random for each batch."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, and the augmentation."""
    evaluate_every: int = 200
    """Number of steps between evaluations on the validation split."""
    patience: int = 0
    """Early stopping: training stops after this many evaluations in a row without a better score; 0: no early
    stopping."""
    keep: Keep = "last"
    """Weights to save as the model: last, or best (those with the best validation score; among equal scores, with the
    lowest validation loss)."""
    checkpoint_every: int = 0
    """Number of steps between checkpoints; a checkpoint is also written after each best evaluation. 0: checkpoints are
    written only when training is stopped (Ctrl-C, SIGTERM) and, with keep=best, after each best evaluation."""
    keep_checkpoints: int = 3
    """Number of recent checkpoints to keep, in addition to that of the best evaluation."""
    async_checkpoints: bool = False
    """Whether training goes on while a checkpoint is written; the state is copied in memory first."""
    max_skipped: int = 10
    """Number of skipped steps in a row that end training with an error. A step is skipped if its loss or gradient is
    not finite."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:NUMBER, mps, or auto (CUDA if available, then MPS, then CPU)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the forward pass in training (autocast); the weights stay float32."""
    expert_parallel: int = 1
    """Expert parallelism: number of processes that share the experts of each layer; all other weights are then sharded
    over all processes (see `vismoe.parallelize`). 1: every process has the whole network."""
    hang_timeout: float = 1800.0
    """Several processes: seconds after which the training ends if a process does not answer."""
    workers: int = 0
    """Number of processes that load images; 0: the training process loads them. The result does not depend on it."""
    track: Tracker = "none"
    """Metrics tracker, in addition to metrics.jsonl: tensorboard (files in the run folder), trackio or wandb. The
    package must be installed."""

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_combinations()
        if self.warmup_steps and self.warmup_steps >= self.steps:
            object.__setattr__(self, "warmup_steps", self.steps // 10)
        self._check_optimisation()

    def _check_ranges(self) -> None:
        """Raises ValueError for a value that is not accepted, regardless of the other fields."""
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
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate}: it must divide batch_size={self.batch_size}")
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

    def without(self, unused: Mapping[str, Any], task: str) -> tuple["Recipe", str]:
        """The recipe for a task that does not have some fields.

        **Arguments:**

        - `unused`: these fields, each with the value that it gets.
        - `task`: the name of the task in messages.

        **Returns:** the recipe, and what has changed, as text; "" if nothing has.

        **Raises:** ValueError if such a field has another value than this one or the default.
        """
        defaults = {known.name: known.default for known in fields(self)}
        changes = []
        for name, value in unused.items():
            if (given := getattr(self, name)) not in (value, defaults[name]):
                raise ValueError(f"{name}={given}: the task {task} does not have it; set it to {value}")
            if given != value:
                changes.append(f"{name}={value} instead of {given}")
        text = f"{', '.join(changes)}, because the task {task} does not have {'them' if changes[1:] else 'it'}"
        return replace(self, **unused), text if changes else ""

    @property
    def augmentation(self) -> dict[str, float]:
        """Arguments of `vismoe.data.training_transform`."""
        return {name: getattr(self, name) for name in AUGMENTATION}

    def enough_steps(self, images: int) -> int:
        """The smallest number of steps for which `shortage` is None, for a number of training images."""
        return max(-(-images // self.batch_size), FEWEST_STEPS)

    def shortage(self, images: int) -> str | None:
        """Why the run is too short to learn much; None if it is long enough: at least one pass over the images, and at
        least 50 steps.

        **Arguments:**

        - `images`: number of training images.
        """
        one_pass = -(-images // self.batch_size)
        steps, are = ("1 step", "is") if self.steps == 1 else (f"{self.steps} steps", "are")
        if self.steps < one_pass:
            return (
                f"{steps} of {self.batch_size} images {are} less than one pass over the {images:,} training "
                f"images, which takes {one_pass:,} steps"
            )
        if self.steps < FEWEST_STEPS:
            return f"{steps} {are} few; training usually needs {FEWEST_STEPS} or more"
        return None

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Recipe":
        """The recipe with the fields of a dictionary.

        **Raises:** ValueError for an unknown field, or as `Recipe`.
        """
        if unknown := sorted(set(values) - {known.name for known in fields(cls)}):
            raise ValueError(f"a recipe has no field {', '.join(unknown)}")
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """The value with tuples in place of JSON's lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
