"""How a network expects its images."""

from typing import Any

from timm.data.model_config import resolve_input_data_config
from torch import nn

from .huggingface.network import as_network


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data configuration of a network: input_size, mean, std (one value a channel), interpolation, crop_pct."""
    config: dict[str, Any] = resolve_input_data_config(as_network(model))
    return config
