"""The options of `finetune`."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vismoe.files.renamed import renamed_argument, renamed_property
from vismoe.weights import parse_source

Trained = Literal["all", "last-third", "last-two", "experts", "head"]
TrainingDtype = Literal["float32", "bfloat16"]
LARGEST = 4096
"""Largest side of an image in pixels."""
NUM_EXPERTS, LAYERS = 8, "last-2"
EXPERTS: Literal["low-rank"] = "low-rank"
"""Defaults of the options of experts."""


@dataclass(frozen=True)
class Options:
    """The options of `finetune`. On one kind of device they determine the result.

    **Raises:** ValueError for values out of range, and for options without effect.
    """

    data: str
    """Folder of class folders, of images with a metadata.csv, or of images with boxes; a zip of one; "digits" or
    "fashion-mnist"."""
    source: str | None = None
    """Network to start from: a run or model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or a preset (random weights).
    None: a small preset."""
    sparse: bool | None = None
    """True: a dense network is upcycled; without a source, a sparse preset is trained. False: the network must be
    dense. None: a network is not changed, and a preset is dense, unless an option of experts is given."""
    train: Trained | Literal["auto"] = "auto"
    """Part of the network that is trained. "auto": on a CPU the last third of a trained network, of a detector's trunk
    the last two blocks; otherwise all. Without a trained source, accepted are "auto" and "all"."""
    freeze_router: bool = False
    """Whether routers and their balancing are frozen."""
    num_experts: int | None = None
    """Number of experts per layer when upcycling. None: 8."""
    moe_layers: str | None = None
    """Blocks to upcycle: last-N (of the odd blocks), every-N, or block numbers from 0 such as "8,10". None: last-2; of
    a detector, the last two blocks."""
    experts: Literal["full", "low-rank"] | None = None
    """Kind of experts when upcycling. "full": copies of the network's MLP. "low-rank": low-rank differences from the
    frozen MLP; they were no worse, and have fewer trained parameters (docs/finetune.md). None: "low-rank"."""
    image_size: int | None = None
    """Height and width in pixels. None: the network's own, at most 112 on a CPU and 224 elsewhere; up to twice that if
    the images are larger and a linear classifier is better there. From scratch: the size nearest to the images' that
    has at most eight patches per side. Of a detector, the longer side; None: where small objects have enough pixels."""
    max_level: int | None = None
    """White level of 16-bit grey images, such as 4095 for 12-bit data. None: the network's own, or 65535."""
    epochs: int | None = None
    """Number of epochs, rounded up to whole steps. None: at most 12 (80 from scratch), of a detector 40 or more; on a
    CPU limited to a number of MACs."""
    batch_size: int | None = None
    """Images per step. None: 32 for a trained network, 64 from scratch, 4 to 32 for a detector."""
    learning_rate: float | None = None
    """Peak learning rate. None: 2e-4 for a trained network, 2e-3 from scratch and for a detector, whose trained
    trunk gets a twentieth of it."""
    class_weights: float = 0.0
    """Weight of a class in the loss: (mean class size ÷ its size) to this power; 0: all classes have equal weight. Must
    be 0 for a detector."""
    dtype: TrainingDtype | Literal["auto"] = "auto"
    """Autocast dtype in training. "auto": bfloat16 if the device has instructions for it, which is twice as fast."""
    seed: int = 0
    """Seed of the split, new weights, order and augmentation."""
    group_column: str | None = None
    """Column of metadata.csv with groups of images (of one patient, video, site): each group stays in one split."""

    def __post_init__(self) -> None:
        for name, largest in (
            ("image_size", LARGEST),
            ("max_level", 65535),
            ("epochs", 10**6),
            ("batch_size", 10**6),
            ("num_experts", 10**4),
        ):
            if (value := getattr(self, name)) is not None and not 1 <= value <= largest:
                raise ValueError(f"{name}={value}: accepted are 1 to {largest}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: it must be positive and finite")
        if not 0 <= self.class_weights <= 10:
            raise ValueError(f"class_weights={self.class_weights}: accepted are 0 to 10")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: accepted are 0 to 2^32 − 1")
        accepted = {
            "train": (*get_args(Trained), "auto"),
            "experts": (None, "full", "low-rank"),
            "dtype": (*get_args(TrainingDtype), "auto"),
        }
        for name, choices in accepted.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are {', '.join(filter(None, choices))}")
        if self.sparse is False and (idle := [*self.of_experts, *(["train"] if self.train == "experts" else [])]):
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in idle)
            raise ValueError(f"{given}: a dense network has no experts")
        if self.train not in ("auto", "all") and not self.trained:
            raise ValueError(
                f'train="{self.train}": without a trained network, the weights that are not trained would stay random: '
                'use "auto" or "all", or name a trained network (--from, source=)'
            )

    layers = renamed_property("layers", "moe_layers")

    @property
    def makes_sparse(self) -> bool:
        """Whether a dense network is upcycled or, without a source, a sparse preset is trained."""
        if self.sparse is not None:
            return self.sparse
        return bool(self.of_experts) or self.train == "experts"

    @property
    def of_experts(self) -> list[str]:
        """Names of the options of experts that are given, also if the value is the default."""
        given = [name for name in ("num_experts", "moe_layers", "experts") if getattr(self, name) is not None]
        return ["freeze_router", *given] if self.freeze_router else given

    @property
    def trained(self) -> bool:
        """Whether the initial network has trained weights."""
        return self.source is not None and parse_source(self.source).is_trained


Options.__init__ = renamed_argument("layers", "moe_layers")(Options.__init__)  # type: ignore[method-assign]
