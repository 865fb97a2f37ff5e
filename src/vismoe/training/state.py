"""Everything a run is between two steps."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class State:
    """What a checkpoint holds and a resumed run begins with; all else follows from the recipe.

    Randomness is no part of it: every step's is a function of the recipe's seed and the step's number, and every
    image's of (seed, epoch, index). `skipped`: steps whose loss or gradient was not finite, `in_a_row` of them the
    last. `best_score`, `best_step`: of the best evaluation so far.
    """

    model: nn.Module
    optimizer: Optimizer
    average: ModelEmaV3 | None
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    best_score: float = -1.0
    best_step: int | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the average of weights where there is one."""
        return self.model if self.average is None else self.average.module

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{name}": tensor for name, tensor in self.average.module.state_dict().items()}
        for number, entries in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in entries.items() if torch.is_tensor(value)}
        return found

    def values(self) -> dict[str, Any]:
        """Everything else, as JSON has it."""
        return {name: getattr(self, name) for name in VALUES}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Sets everything to what `tensors` and `values` said when it was saved.

        **Raises:** ValueError for tensors of another network.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        try:
            self.model.load_state_dict(parts["model"])
            if self.average is not None:
                self.average.module.load_state_dict(parts["average"])
        except RuntimeError as error:
            raise ValueError("the checkpoint is of another network than the recipe's") from error
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, entry = name.partition(".")
            state.setdefault(int(number), {})[entry] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for name in VALUES:
            setattr(self, name, values[name])


VALUES = ("step", "skipped", "in_a_row", "best_score", "best_step")
