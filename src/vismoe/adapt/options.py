"""What an adaptation is asked to be."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from vismoe.vit import PRESETS

from .freezing import Trained

Products = Literal["float32", "bfloat16"]
LARGEST = 4096
"""Pixels of a side, at most; epochs and images of a batch may be a million."""


@dataclass(frozen=True)
class Options:
    """What an adaptation is asked to be; on one kind of device it decides the result.

    **Raises:** ValueError for values outside their range, and for options that have nothing to do.
    """

    data: str
    """Folder of class folders, or with a metadata.csv; a zip of one; "digits" or "fashion-mnist"."""
    source: str | None = None
    """A run or model folder, timm:NAME, hf:ORG/NAME; a preset, with random weights; None: a small one of these."""
    sparse: bool | None = None
    """Whether a dense network is upcycled, or without a source a sparse preset trained. None: a network stays as it is,
    unless options of experts are given (docs/finetune.md: experts did no better), and what starts from nothing is
    sparse (docs/evidence.md: at equal multiplications right more often on Fashion-MNIST, no less often on drawings)."""
    train: Trained | Literal["auto"] = "auto"
    """What is trained; auto: from scratch all, of a trained network the last third on a CPU, all elsewhere."""
    freeze_router: bool = False
    """Routers, and their balancing, stay as they are."""
    num_experts: int = 8
    """Of each layer that is upcycled."""
    layers: str = "last-2"
    """Which blocks are upcycled: last-N (of the odd blocks), every-N, or numbers from 0 as in \"8,10\"."""
    experts: Literal["full", "low-rank"] = "low-rank"
    """Copies of the network's MLP, or its MLP frozen and low-rank differences: no worse, and less to train
    (docs/finetune.md)."""
    image_size: int | None = None
    """Pixels; by default up to 112 on a CPU, 224 elsewhere, and the network's own."""
    epochs: int | None = None
    """Times that each image is trained on, at most; by default what minutes allow."""
    batch_size: int | None = None
    """Images of a step; 32 for a trained network, 64 from scratch."""
    learning_rate: float | None = None
    """Peak rate; 2e-4 for a trained network, 2e-3 from scratch."""
    class_weights: float = 0.0
    """How much more rare classes count in the loss: (mean class size ÷ their size) to this power."""
    dtype: Products | Literal["auto"] = "auto"
    """Of products while training; auto: bfloat16 where the device multiplies it natively, which is twice as fast."""
    seed: int = 0
    """Of the split, of new weights, order and augmentation."""

    def __post_init__(self) -> None:
        for name, most in (("image_size", LARGEST), ("epochs", 10**6), ("batch_size", 10**6), ("num_experts", 10**4)):
            if (value := getattr(self, name)) is not None and not 1 <= value <= most:
                raise ValueError(f"{name}={value}: accepted are 1 to {most}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: it must be positive and finite")
        if not 0 <= self.class_weights <= 10:
            raise ValueError(f"class_weights={self.class_weights}: accepted are 0 to 10")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: accepted are 0 to 2^32 − 1")
        accepted = {
            "train": (*get_args(Trained), "auto"),
            "experts": ("full", "low-rank"),
            "dtype": (*get_args(Products), "auto"),
        }
        for name, words in accepted.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are {', '.join(words)}")
        if self.sparse is False and (idle := [*self.of_experts, *(["train"] if self.train == "experts" else [])]):
            told = ", ".join(f"{name}={getattr(self, name)!r}" for name in idle)
            raise ValueError(f"{told}: a dense network has no experts")
        if self.train == "head" and not self.trained:
            raise ValueError('train="head": without a trained network (--from) there are no features to classify by')

    @property
    def makes_sparse(self) -> bool:
        """Whether a dense network is upcycled, or without a source a sparse preset trained."""
        if self.sparse is not None:
            return self.sparse
        return self.source is None or bool(self.of_experts) or self.train == "experts"

    @property
    def of_experts(self) -> list[str]:
        """Options of the experts that are not what they are by default."""
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self)}
        names = ("freeze_router", "num_experts", "layers", "experts")
        return [name for name in names if getattr(self, name) != defaults[name]]

    @property
    def trained(self) -> bool:
        """Whether it starts from weights that know something."""
        return self.source is not None and self.source not in PRESETS
