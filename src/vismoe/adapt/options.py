"""What an adaptation is asked to be."""

from dataclasses import dataclass
from typing import Literal

from vismoe.vit import PRESETS

from .freezing import Trained
from .rules import Products


@dataclass(frozen=True)
class Options:
    """What an adaptation is asked to be; on one kind of device it decides the result."""

    data: str
    """Folder of class folders, or with a metadata.csv; a zip of one; "digits" or "fashion-mnist"."""
    source: str | None = None
    """A run or model folder, timm:NAME, hf:ORG/NAME; a preset, with random weights; None: a small one of these."""
    sparse: bool = True
    """A dense network is upcycled; without a source, a sparse preset is trained."""
    train: Trained | Literal["auto"] = "auto"
    """What is trained; auto: from scratch all, of a trained network the last third on a CPU, all elsewhere."""
    freeze_router: bool = False
    """Routers, and their balancing, stay as they are."""
    num_experts: int = 8
    """Of each layer that is upcycled."""
    layers: str = "last-2"
    """Which blocks are upcycled: last-N (of the odd blocks), every-N."""
    experts: Literal["full", "low-rank"] = "full"
    """Copies of the network's MLP, or its MLP frozen and low-rank differences."""
    image_size: int | None = None
    """Pixels; by default up to 112 on a CPU, 224 elsewhere, and the network's own."""
    epochs: int | None = None
    """Times that each picture is trained on, at most; by default what minutes allow."""
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

    @property
    def trained(self) -> bool:
        """Whether it starts from weights that know something."""
        return self.source is not None and self.source not in PRESETS
