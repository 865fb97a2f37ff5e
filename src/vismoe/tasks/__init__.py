"""Tasks: what a network is trained for. Classification with one or several labels per image, and detection, are built
in; other tasks are registered with `register_task`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vismoe.data import Data, ImageSet, open_data

from .base import Evaluation, Prediction, Scorer, Task
from .classification import Classification
from .detection import Detection
from .groups import Group, by_group, group_lines
from .labels import (
    ClassEvaluation,
    ClassPrediction,
    Labels,
    is_multi_label,
    label_names,
    wilson_interval,
)
from .multi_label import MultiLabel

TASKS: dict[str, type[Task]] = {}
"""The registered tasks by name. Recipes and model folders use these names."""
AUTO = "auto"
"""Name of the default task: detection if the data set has boxes, otherwise classification with one or several labels
per image, as in the data set."""


def register_task(task: type[Task]) -> type[Task]:
    """Registers a task under its name. Can be used as a decorator.

    **Arguments:**

    - `task`: a subclass of `Task`.

    **Returns:** `task`.

    **Raises:** ValueError if another task has the name.
    """
    if TASKS.get(task.name, task) is not task or task.name == AUTO:
        raise ValueError(f"task {task.name!r} exists already")
    TASKS[task.name] = task
    return task


for _task in (Classification, MultiLabel, Detection):
    register_task(_task)


def find_task(name: str) -> type[Task]:
    """The task with a name.

    **Raises:** ValueError for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; accepted are {', '.join((AUTO, *TASKS))}")
    return TASKS[name]


def open_for(
    name: str,
    data: str,
    split_seed: int | None = None,
    workers: int = 0,
    moved: Sequence[str] | None = None,
    group_column: str | None = None,
) -> Data:
    """Opens a data set for a task.

    **Arguments:**

    - `name`: name of the task, or "auto".
    - `data`: name or path of the data set.
    - `split_seed`, `workers`, `moved`, `group_column`: as in `vismoe.data.open_data`. `group_column` is passed to the
      task only if it is not None.
    """
    grouped: dict[str, Any] = {} if group_column is None else {"group_column": group_column}
    return (open_data if name == AUTO else find_task(name).open)(data, split_seed, workers, moved, **grouped)


def task_for(name: str, data: Data, settings: Mapping[str, Any]) -> Task:
    """Creates the task for training on a data set.

    **Arguments:**

    - `name`: name of the task, or "auto".
    - `data`: the data set.
    - `settings`: fields of the recipe by name.
    """
    return (find_task(name) if name != AUTO else _task_of(data)).of_training(data, settings)


def _task_of(data: Data) -> type[Task]:
    if data.has_boxes:
        return Detection
    return MultiLabel if data.multi_label else Classification


def classification_of(data: Data) -> Labels:
    """Classification with one or several labels per image, as in the data set, with the default training settings."""
    return (MultiLabel if data.multi_label else Classification)(data.classes)


def task_of(model: nn.Module) -> Task:
    """The task that a network was trained for, by its `problem_type`; classification if it has none."""
    name = getattr(model, "pretrained_cfg", {}).get("problem_type")
    return TASKS.get(str(name), Classification).of_model(model)


def task_for_set(model: nn.Module, images: ImageSet) -> Task:
    """The task for evaluating a network on images: the task that it was trained for. For classification, one or several
    labels per image are as in `images`."""
    task = task_of(model)
    if not isinstance(task, Labels):
        return task
    return (MultiLabel if images.labels.ndim == 2 else Classification).of_model(model)


__all__ = [
    "AUTO",
    "TASKS",
    "ClassEvaluation",
    "ClassPrediction",
    "Classification",
    "Detection",
    "Evaluation",
    "Group",
    "Labels",
    "MultiLabel",
    "Prediction",
    "Scorer",
    "Task",
    "by_group",
    "classification_of",
    "find_task",
    "group_lines",
    "is_multi_label",
    "label_names",
    "open_for",
    "register_task",
    "task_for",
    "task_for_set",
    "task_of",
    "wilson_interval",
]
