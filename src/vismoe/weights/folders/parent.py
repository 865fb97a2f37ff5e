"""The dense parent of an upcycled network, from which a model folder may have only the differences."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vismoe.vit import MoEConfig, make_sparse


@dataclass(frozen=True)
class Parent:
    """A dense network that was upcycled.

    - `source`: a folder's path, timm:NAME, hf:ORG/NAME or PRESET.TAG.
    - `sha256`: hash of its weights.
    - `model`: the network.
    """

    source: str
    sha256: str
    model: nn.Module

    def sparse_state(self, config: MoEConfig | None) -> dict[str, Tensor]:
        """The parent's tensors after upcycling with `config`, by name; new tensors are random. Changes `model` in
        place."""
        if config is None:
            raise ValueError("the model is dense: only upcycled models can be saved as differences from a parent")
        make_sparse(self.model, config)
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}


def sum_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `state` that are not bit-equal in `base`."""
    return {name: tensor for name, tensor in state.items() if name not in base or not _are_equal(tensor, base[name])}


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
