"""What a network computes as a graph: its inputs, its outputs, and its product."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vismoe.detection import decode_padded
from vismoe.moe import Product
from vismoe.weights.exported.description import CLASSIFIER, DETECTOR

from .product import export_product, masked_export_product


class LogitsOnly(nn.Module):
    """A network that returns only its logits; transformers' networks return other outputs too."""

    inputs, outputs = CLASSIFIER

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def product(self) -> Product:
        """The experts' product in the graph."""
        return export_product

    def example(self, batch: int, input_size: Sequence[int]) -> tuple[Tensor, ...]:
        """Inputs for a batch of images of size (C, H, W)."""
        return (torch.zeros(batch, *input_size),)

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.model(pixels)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits


class ObjectsOnly(nn.Module):
    """A detector that returns the objects it finds, in tensors of fixed shape."""

    inputs, outputs = DETECTOR

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def product(self) -> Product:
        """The experts' product in the graph."""
        return masked_export_product

    def example(self, batch: int, input_size: Sequence[int]) -> tuple[Tensor, ...]:
        """Inputs for a batch of images of size (C, H, W)."""
        return torch.zeros(batch, *input_size), torch.ones(batch, *input_size[1:], dtype=torch.bool)

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(decode_padded(self.model(pixels, mask)))
