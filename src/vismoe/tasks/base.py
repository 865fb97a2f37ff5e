"""What a network is trained for: a task says what a batch's loss is, how good a network is, what it answers, and what
is saved beside its weights. `training/` and `inference/` know tasks by this interface alone.

A task is one file and its registration: `register_task(MyTask)`. A recipe names it (`task="my-task"`), a model folder's
`problem_type` finds it again.
"""

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
from vismoe.weights import data_config, save

Sum = Callable[[Tensor], Tensor]
"""The sum of a tensor over the processes that share an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on a set.

    - `metrics`: by name; the first is the primary metric, by which weights are selected: the larger, the better.
    - `images_per_second`: of the forward passes alone.
    - `load`: by layer, how many choices each expert got.
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
        """The metrics under the names that a run's files give them."""
        return {"val_loss" if name == "loss" else name: value for name, value in self.metrics.items()}

    def details(self) -> dict[str, Any]:
        """What else `vismoe eval --json` prints, by name."""
        return {}

    def lines(self) -> list[str]:
        """What `vismoe eval` prints below the metrics."""
        return []


class Scorer(ABC):
    """Takes a network's outputs on a set, batch by batch, and becomes an evaluation."""

    @abstractmethod
    def update(self, places: Tensor, outputs: Any, batch: Batch) -> None:
        """Takes the outputs for the samples at `places` (B,) of the set."""

    @abstractmethod
    def evaluation(self, total: Sum, images_per_second: float, load: dict[str, list[int]]) -> Evaluation:
        """The evaluation, once every process has updated its share; `total` sums over processes."""


class Prediction(ABC):
    """A network's answer for one image; `image`: its path, or a title."""

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
    """What a network is trained for. The defaults are those of a network that is called with `image` alone.

    A subclass says `name`, by which recipes and model folders know it; `metric`, its primary metric, and
    `metric_title`, what a plot calls it; and, where single training batches have a score, `training_metric`, under
    which that is logged. Both are drawn in one plot where the titles are the same.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    metric_title: ClassVar[str]
    training_metric: ClassVar[str | None] = None

    # Made for a training, or of a trained network.

    @classmethod
    @abstractmethod
    def of_training(cls, data: Data, settings: Mapping[str, Any]) -> "Task":
        """The task of training on a set; `settings`: the recipe's fields by name."""

    @classmethod
    @abstractmethod
    def of_model(cls, model: nn.Module) -> "Task":
        """The task that a network was trained for."""

    # Data.

    @classmethod
    def open(
        cls, name: str, split_seed: int | None = None, workers: int = 0, moved: Sequence[str] | None = None
    ) -> Data:
        """Opens a set by name or path; see `vismoe.data.open_data`. A task with sets of its own may leave `workers` and
        `moved` aside."""
        return open_data(name, split_seed, workers, moved)

    def check(self, data: Data) -> None:
        """Raises ValueError for a set that cannot be trained on."""
        return None

    def check_further(self, name: str, images: ImageSet) -> None:
        """Raises ValueError for a further set that cannot be evaluated beside the validation split."""
        return None

    def known_to_model(self, data: Data) -> Data:
        """The set as the network of this task understands it.

        **Raises:** ValueError where it does not.
        """
        return data

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError for a network that gives no answers of this task."""
        return None

    def read(self, path: Path) -> Sample:
        """The sample that a user's file is, without a target.

        **Raises:** ValueError for a file that cannot be read.
        """
        return {"image": read_image(path)}

    def training_transform(self, config: dict[str, Any], augmentation: Mapping[str, float]) -> Transform:
        """What is done to a training sample; `config`: timm's data configuration of the network."""
        return training_transform(config, **augmentation)

    def evaluation_transform(self, config: dict[str, Any]) -> Transform:
        """What is done to a sample at evaluation and prediction."""
        return evaluation_transform(config)

    collate: Callable[[list[Sample]], Batch] | None = None
    """How samples become a batch; None: each entry is stacked."""

    # The network and its loss.

    def network_options(self, data: Data) -> dict[str, Any]:
        """Arguments that build the network for a set, beside the recipe's."""
        return {"in_chans": data.channels}

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """A training batch, whole, before it is cut into accumulation steps (mixup and its like); `seed` decides all
        that is random."""
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
        """What turns outputs for a whole set into an evaluation."""

    @abstractmethod
    def predictions(self, outputs: Any, titles: Sequence[str], topk: int) -> list[Prediction]:
        """The answers for a batch; `titles`: of its images; `topk`: how many alternatives, where there are some."""

    def save(self, model: nn.Module, path: Path) -> None:
        """Writes a model folder that knows its task and how its images are prepared."""
        save(model, path, preprocessing=data_config(model), problem_type=self.name)

    def report(self, evaluation: Evaluation, images: ImageSet, folder: Path) -> None:
        """Writes figures of an evaluation into a run folder."""
        return None
