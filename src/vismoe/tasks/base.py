"""The interface of tasks. A task defines the loss of a batch, the evaluation of a network, its predictions, and what is
saved with its weights. `training/` and `inference/` use tasks only through this interface.

To add a task, write a subclass of `Task` and call `register_task(MyTask)`. Recipes (`task="my-task"`) and model folders
(`problem_type`) refer to it by its name.
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
"""The new name of each renamed method."""
Sum = Callable[[Tensor], Tensor]
"""Function that sums a tensor over the processes that share an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a network on images.

    - `metrics`: values by name. The first is the primary metric, by which weights are selected; larger is better.
    - `images_per_second`: speed of the forward passes only.
    - `load`: by layer, the number of the tokens' choices that each expert got.
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
        """The metrics by their names in the files of a run."""
        return {"val_loss" if name == "loss" else name: value for name, value in self.metrics.items()}

    @property
    def weakness(self) -> str | None:
        """Why the network is useless on these images, as text: it gives the same answer for all images, or is not
        better than chance. None otherwise, and for tasks without such a check."""
        return None

    def details(self) -> dict[str, Any]:
        """Additional entries of `vismoe eval --json`, by name."""
        return {}

    def lines(self) -> list[str]:
        """Lines that `vismoe eval` prints after the metrics."""
        return []


class Scorer(ABC):
    """Collects the outputs of a network, batch by batch, and computes the evaluation."""

    @abstractmethod
    def update(self, places: Tensor, outputs: Any, batch: Batch) -> None:
        """Adds the outputs for a batch.

        **Arguments:**

        - `places`: (B,), indices of the samples.
        - `outputs`: outputs of the network.
        - `batch`: the batch.
        """

    @abstractmethod
    def evaluation(self, total: Sum, images_per_second: float, load: dict[str, list[int]]) -> Evaluation:
        """Computes the evaluation, after every process has added its batches.

        **Arguments:**

        - `total`: sums a tensor over all processes.
        - `images_per_second`: speed of the forward passes.
        - `load`: by layer, the number of the tokens' choices that each expert got.
        """


class Prediction(ABC):
    """The prediction for one image.

    - `image`: path or title of the image.
    """

    image: str

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The prediction as a dictionary for JSON."""

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """The prediction as a row of a CSV file, by column."""

    def cells(self) -> dict[str, str]:
        """The prediction as a row of a printed table, by column."""
        return {name: str(value) for name, value in self.columns().items()}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the prediction in a CSV file, at least one, all with the same columns; default: `columns`."""
        return [self.columns()]

    def table_rows(self) -> list[dict[str, str]]:
        """The rows of the prediction in a printed table, at least one, all with the same columns; default: `cells`."""
        return [self.cells()]


class Task(ABC):
    """What a network is trained for. The default methods suit a network whose only input is "image".

    A subclass sets these class variables:

    - `name`: its name in recipes and model folders.
    - `metric`: name of its primary metric.
    - `metric_title`: title of the primary metric in plots.
    - `training_metric`: name of the score of training batches in the log; default None: there is no score. If it equals
      `metric_title`, both curves are drawn in one plot.
    - `unused_settings`: fields of a recipe that the task does not have, each with the value that stands for that.
      Training uses these values, says so, and refuses others than a recipe's defaults. Default: none.
    - `largest_batch`: number of images per forward pass, at most, if the caller names none; default 256.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    metric_title: ClassVar[str]
    training_metric: ClassVar[str | None] = None
    unused_settings: ClassVar[Mapping[str, Any]] = {}
    largest_batch: ClassVar[int] = 256

    def __init_subclass__(cls, **options: Any) -> None:
        """Accepts subclasses that override methods by their old names, for one version."""
        super().__init_subclass__(**options)
        for old, new in OLD_METHODS.items():
            if old in vars(cls):
                warnings.warn(f"{cls.__name__}.{old} is called {new} now", DeprecationWarning, stacklevel=2)
                setattr(cls, new, vars(cls)[old])

    # Creation.

    @classmethod
    @abstractmethod
    def of_training(cls, data: Data, settings: Mapping[str, Any]) -> "Task":
        """Creates the task for training on a data set. `settings`: fields of the recipe by name."""

    @classmethod
    @abstractmethod
    def of_model(cls, model: nn.Module) -> "Task":
        """Creates the task of a trained network."""

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
        """Opens a data set. The arguments are those of `vismoe.data.open_data`. A task with other data sets may ignore
        `workers` and `moved`. `group_column` is passed only if it is not None."""
        return open_data(name, split_seed, workers, moved, group_column)

    def check(self, data: Data) -> None:
        """Raises ValueError if training on this data set is impossible."""
        return None

    def check_extra_eval(self, name: str, images: ImageSet) -> None:
        """Raises ValueError if the additional images `name` (see `fit(extra_eval=…)`) cannot be evaluated."""
        return None

    def align_classes(self, data: Data) -> Data:
        """The data set with its labels numbered as the outputs of the network.

        **Raises:** ValueError if the data set does not fit the network.
        """
        return data

    check_further = renamed_method("check_further", "check_extra_eval")
    known_to_model = renamed_method("known_to_model", "align_classes")

    def check_model(self, model: nn.Module) -> None:
        """Raises ValueError for a network that cannot do this task."""
        return None

    def read(self, path: Path) -> Sample:
        """Reads a user's file as a sample without a label.

        **Raises:** ValueError for a file that cannot be read.
        """
        return {"image": read_image(path)}

    def training_transform(self, config: dict[str, Any], augmentation: Mapping[str, float]) -> Transform:
        """The transform of training samples.

        **Arguments:**

        - `config`: timm's data configuration of the network.
        - `augmentation`: arguments of `vismoe.data.training_transform`.
        """
        return training_transform(config, **augmentation)

    def evaluation_transform(self, config: dict[str, Any]) -> Transform:
        """The transform of samples in evaluation and prediction. `config`: timm's data configuration of the network."""
        return evaluation_transform(config)

    collate: Callable[[list[Sample]], Batch] | None = None
    """Function that makes a batch from a list of samples; None: each value is stacked."""

    # The network and its loss.

    def network_options(self, data: Data) -> dict[str, Any]:
        """Arguments of `create_model` that depend on the data set."""
        return {"in_chans": data.channels}

    def network(self, model: nn.Module) -> nn.Module:
        """The network to train, made of the recipe's; default: the recipe's itself."""
        return model

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Changes a training batch, for example by mixup, before it is divided into micro-batches. `seed` decides all
        random numbers."""
        return batch

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        """The network's outputs for a batch."""
        return network(batch["image"])

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch: a scalar tensor with gradient."""

    def training_score(self, outputs: Any, batch: Batch) -> Tensor | None:
        """The `training_metric` of a batch, a scalar tensor; None if the task has none."""
        return None

    # Results.

    @abstractmethod
    def scorer(self, images: ImageSet) -> Scorer:
        """Creates a scorer for these images."""

    @abstractmethod
    def predictions(self, outputs: Any, titles: Sequence[str], topk: int) -> list[Prediction]:
        """The predictions for a batch.

        **Arguments:**

        - `outputs`: outputs of the network.
        - `titles`: (B,), path or title of each image.
        - `topk`: number of alternatives in each prediction, if the task has any.
        """

    def save(self, model: nn.Module, path: Path) -> None:
        """Writes a model folder with the weights, the name of the task and the preprocessing."""
        save(model, path, preprocessing=data_config(model), problem_type=self.name)

    def report(self, evaluation: Evaluation, images: ImageSet, folder: Path) -> None:
        """Draws figures of an evaluation into a run folder."""
        return None
