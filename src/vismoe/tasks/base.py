"""The interface of tasks: a task defines the loss of a batch, the evaluation of a network, its predictions, and what is
saved beside its weights. `training/` and `inference/` use tasks through this interface alone.

A task is one file and its registration: `register_task(MyTask)`. A recipe names it (`task="my-task"`), and so does
the `problem_type` of a model folder.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from vismoe.data import (
    Batch,
    Data,
    ImageSet,
    Sample,
    Transform,
    evaluation_transform,
    open_data,
    read_image,
    training_transform,
)
from vismoe.files.renamed import renamed_method
from vismoe.weights import data_config, save

OLD_METHODS = {"check_further": "check_extra_eval", "known_to_model": "align_classes"}
Sum = Callable[[Tensor], Tensor]
"""The sum of a tensor over the processes that share an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on a set.

    - `metrics`: by name; the first is the primary metric, by which weights are selected; larger is better.
    - `images_per_second`: speed of the forward passes alone.
    - `load`: by layer, the number of choices that each expert got.
    """

    metrics: dict[str, float]
    images_per_second: float
    load: dict[str, list[int]]

    @property
    def score(self) -> float:
        """The primary metric."""
        return next(iter(self.metrics.values()))

    @property
    def logged(self) -> dict[str, float]:
        """The metrics under their names in a run's files."""
        return {"val_loss" if name == "loss" else name: value for name, value in self.metrics.items()}

    @property
    def weakness(self) -> str | None:
        """Why the network is of no use on this set, in words: it always gives one answer, or is not better than chance;
        None where nothing shows that it is not, and for a task that does not ask."""
        return None

    def details(self) -> dict[str, Any]:
        """Further entries of `vismoe eval --json`, by name."""
        return {}

    def lines(self) -> list[str]:
        """Lines that `vismoe eval` prints below the metrics."""
        return []


class Scorer(ABC):
    """Collects a network's outputs on a set, batch by batch, for an evaluation."""

    @abstractmethod
    def update(self, places: Tensor, outputs: Any, batch: Batch) -> None:
        """Takes the outputs for the samples at `places` (B,) of the set."""

    @abstractmethod
    def evaluation(self, total: Sum, images_per_second: float, load: dict[str, list[int]]) -> Evaluation:
        """The evaluation, once every process has updated its share; `total` sums over processes."""


class Prediction(ABC):
    """A network's answer for one image. `image`: its path, or a title."""

    image: str

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The answer as JSON has it."""

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """The answer as a row of a CSV file, by column."""

    def cells(self) -> dict[str, str]:
        """The answer as a row of a table for people, by column."""
        return {name: str(value) for name, value in self.columns().items()}


class Task(ABC):
    """A task that a network is trained for. The defaults suit a network that is called with `image` alone.

    A subclass sets `name`, its name in recipes and model folders; `metric`, its primary metric, and `metric_title`, the
    name of that in plots; and, where training batches have a score, `training_metric`, the name under which it is
    logged. Both are drawn in one plot where the titles are the same.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    metric_title: ClassVar[str]
    training_metric: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Accepts overridden methods by their old names, for one version."""
        super().__init_subclass__(**options)
        for old, new in OLD_METHODS.items():
            if old in vars(cls):
                warnings.warn(f"{cls.__name__}.{old} is called {new} now", DeprecationWarning, stacklevel=2)
                setattr(cls, new, vars(cls)[old])

    # Made for a training, or of a trained network.

    @classmethod
    @abstractmethod
    def of_training(cls, data: Data, settings: Mapping[str, Any]) -> "Task":
        """The task for training on a set; `settings`: the recipe's fields by name."""

    @classmethod
    @abstractmethod
    def of_model(cls, model: nn.Module) -> "Task":
        """The task that a network was trained for."""

    # Data.

    @classmethod
    def open(
        cls,
        name: str,
        split_seed: int | None = None,
        workers: int = 0,
        moved: Sequence[str] | None = None,
        group_column: str | None = None,
    ) -> Data:
        """Opens a set by name or path; see `vismoe.data.open_data`. A task with sets of its own may ignore `workers`
        and `moved`; a `group_column` is given only where one is asked for."""
        return open_data(name, split_seed, workers, moved, group_column)

    def check(self, data: Data) -> None:
        """Raises ValueError for a set that cannot be trained on."""
        return None

    def check_extra_eval(self, name: str, images: ImageSet) -> None:
        """Raises ValueError for a further set that cannot be evaluated beside the validation split."""
        return None

    def align_classes(self, data: Data) -> Data:
        """The set in the form that the network of this task takes.

        **Raises:** ValueError where the set does not fit the network.
        """
        return data

    check_further = renamed_method("check_further", "check_extra_eval")
    known_to_model = renamed_method("known_to_model", "align_classes")

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError for a network that gives no answers of this task."""
        return None

    def read(self, path: Path) -> Sample:
        """The sample of a user's file, without a target.

        **Raises:** ValueError for a file that cannot be read.
        """
        return {"image": read_image(path)}

    def training_transform(self, config: dict[str, Any], augmentation: Mapping[str, float]) -> Transform:
        """The transform of training samples; `config`: timm's data configuration of the network."""
        return training_transform(config, **augmentation)

    def evaluation_transform(self, config: dict[str, Any]) -> Transform:
        """The transform of samples at evaluation and prediction."""
        return evaluation_transform(config)

    collate: Callable[[list[Sample]], Batch] | None = None
    """How samples become a batch; None: each entry is stacked."""

    # The network and its loss.

    def network_options(self, data: Data) -> dict[str, Any]:
        """Arguments of the network that depend on the set, beside the recipe's."""
        return {"in_chans": data.channels}

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Changes a whole training batch, before it is cut into accumulation steps (mixup and the like); `seed` decides
        all random numbers."""
        return batch

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        """The network's outputs for a batch."""
        return network(batch["image"])

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar that is differentiated."""

    def training_score(self, outputs: Any, batch: Batch) -> Tensor | None:
        """The `training_metric` of a batch; None where there is none."""
        return None

    # Results.

    @abstractmethod
    def scorer(self, images: ImageSet) -> Scorer:
        """The scorer for a set."""

    @abstractmethod
    def predictions(self, outputs: Any, titles: Sequence[str], topk: int) -> list[Prediction]:
        """The answers for a batch; `titles`: of its images; `topk`: number of alternatives, where there are some."""

    def save(self, model: nn.Module, path: Path) -> None:
        """Writes a model folder that records its task and its preprocessing."""
        save(model, path, preprocessing=data_config(model), problem_type=self.name)

    def report(self, evaluation: Evaluation, images: ImageSet, folder: Path) -> None:
        """Writes figures of an evaluation into a run folder."""
        return None
