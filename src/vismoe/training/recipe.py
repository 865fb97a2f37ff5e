"""Everything that defines one training run."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Optimizer = Literal["adamw", "sgd", "momentum"]
Schedule = Literal["cosine", "linear", "rsqrt", "constant", "warmup-cosine", "warmup-polynomial"]
Loss = Literal["auto", "sigmoid"]
Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
Keep = Literal["last", "best"]


CHOICES = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "loss": get_args(Loss),
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
    model_options: tuple[tuple[str, int | float | str], ...] = ()
    """Further arguments of the network, by name, such as capacity_factor 1.05 (`vismoe.create_model` has them)."""
    weights: str = ""
    """Run or model folder whose weights the network begins with, all but the classifier; none: random ones."""
    drop_path: float = 0.0
    """Share of images that skip the last block in training; fewer skip each one before it (stochastic depth)."""
    data: str = "digits"
    """"digits", "fashion-mnist", or a folder: class folders, or images with a metadata.csv (file_name, label)."""
    task: str = "auto"
    """What the network is trained for; auto: classification, with as many labels an image as the set has."""
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
    learning_rates: tuple[tuple[str, float], ...] = ()
    """Pairs of a regular expression and a peak rate: each parameter's is that of the first that is found in its name,
    without one learning_rate. The schedule is the same for all."""
    optimizer: Optimizer = "adamw"
    """adamw; sgd, with Nesterov's momentum; momentum: SGD with plain momentum, and decoupled decay."""
    momentum: float = 0.9
    """Of sgd and momentum."""
    schedule: Schedule = "cosine"
    """How the rate goes on after the warm-up: cosine or linear, of which the warm-up hides the beginning;
    warmup-cosine or warmup-polynomial, which begin at the peak; rsqrt, constant."""
    warmup_steps: int = 50
    """Steps of linear warm-up; a tenth of the run where it is no longer than this."""
    end_learning_rate: float = 0.0
    """Where the rate ends, if it is neither rsqrt nor constant."""
    power: float = 1.0
    """Of warmup-polynomial: 1 is a line."""
    timescale: int = 0
    """Steps after the warm-up in which rsqrt comes down to √½ of the peak; 0: as many as the warm-up has."""
    cooldown_steps: int = 0
    """Steps of a line to 0 at the end of rsqrt and constant."""
    frozen: str = ""
    """Regular expression: parameters in whose names it is found do not train; none: all do."""
    layer_decay: float = 1.0
    """Each block's rate is this times the rate of the next one above it."""
    accumulate: int = 1
    """Parts that a batch is computed in, for less memory; each moves the balancing bias."""
    average_decay: float = 0.0
    """Of an average of weights, which is evaluated and kept in place of the last ones; 0: none."""
    average_warmup: bool = False
    """The decay of that average begins at 0 and grows with the steps t up to average_decay, 1 − t^(−2/3), so that it
    reaches back over a share of the run, and early weights are forgotten (timm's --model-ema-warmup)."""
    weight_decay: float | tuple[tuple[str, float], ...] = 0.05
    """Decay of weight matrices, decoupled but for sgd; or pairs of a regular expression and a decay: each parameter,
    vectors too, has that of the first that is found in its name, without one none."""
    loss: Loss = "auto"
    """auto: cross-entropy, of images with several classes each class's, mean over classes; sigmoid: each class's
    cross-entropy in any case, summed over classes."""
    label_smoothing: float = 0.05
    """Share of the target spread evenly over all classes."""
    class_weights: float = 0.0
    """How much more rare classes count in the loss: (mean class size ÷ their size) to this power; 0: no more."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0: any."""
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
        rates = [("learning_rates", rate) for _, rate in self.learning_rates]
        for name, value in (("learning_rate", self.learning_rate), ("power", self.power), *rates):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value}: it must be positive and finite")
        for name in (
            "clip_norm",
            "warmup_steps",
            "end_learning_rate",
            "timescale",
            "cooldown_steps",
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
            "momentum",
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
        self._check_optimisation()
        given = [name for name, _ in self.model_options]
        if twice := {name for name in given if given.count(name) > 1 or name in self._named}:
            raise ValueError(f"model_options: {', '.join(sorted(twice))} is said twice")

    def _check_optimisation(self) -> None:
        """What of optimiser and schedule would do nothing, or contradict each other."""
        decays = self.weight_decay if isinstance(self.weight_decay, tuple) else (("", self.weight_decay),)
        for _, decay in decays:
            if not 0 <= decay < float("inf"):
                raise ValueError(f"weight_decay={decay}: it must not be negative")
        for pattern in (*(pattern for pattern, _ in (*decays, *self.learning_rates)), self.frozen):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        ends, goes_on = ("cosine", "linear", "warmup-cosine", "warmup-polynomial"), ("rsqrt", "constant")
        uses = {
            "momentum": (self.optimizer, ("sgd", "momentum")),
            "end_learning_rate": (self.schedule, ends),
            "power": (self.schedule, ("warmup-polynomial",)),
            "timescale": (self.schedule, ("rsqrt",)),
            "cooldown_steps": (self.schedule, goes_on),
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
        """What the recipe changes of its preset."""
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
        """What is done to training images one by one."""
        return {name: getattr(self, name) for name in AUGMENTATION}

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
