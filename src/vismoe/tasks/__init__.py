"""What a network is trained for: classification with one label or several; others register themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vismoe.data import Data, ImageSet, open_data

from .base import Evaluation, Prediction, Scorer, Task
from .classification import Classification
from .labels import (
    ClassEvaluation,
    ClassPrediction,
    Group,
    Labels,
    by_group,
    is_multi_label,
    label_names,
    wilson_interval,
)
from .multi_label import MultiLabel

TASKS: dict[str, type[Task]] = {}
"""By the name that recipes and model folders give them."""
AUTO = "auto"
"""The task that a set of labelled images is for: classification with as many labels an image as it has."""


def register_task(task: type[Task]) -> type[Task]:
    """Makes a task known by its name; also as a decorator.

    **Raises:** ValueError for a name that is another task's.
    """
    if TASKS.get(task.name, task) is not task or task.name == AUTO:
        raise ValueError(f"task {task.name!r} exists already")
    TASKS[task.name] = task
    return task


for _task in (Classification, MultiLabel):
    register_task(_task)


def find_task(name: str) -> type[Task]:
    """A task by name.

    **Raises:** ValueError for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; accepted are {', '.join((AUTO, *TASKS))}")
    return TASKS[name]


def open_for(
    name: str, data: str, split_seed: int | None = None, workers: int = 0, moved: Sequence[str] | None = None
) -> Data:
    """Opens a set as a task does: its name, or "auto"; see `vismoe.data.open_data`."""
    return (open_data if name == AUTO else find_task(name).open)(data, split_seed, workers, moved)


def task_for(name: str, data: Data, settings: Mapping[str, Any]) -> Task:
    """The task of training on a set: its name, or "auto"; `settings`: the recipe's fields."""
    kind = find_task(name) if name != AUTO else MultiLabel if data.multi_label else Classification
    return kind.of_training(data, settings)


def classification_of(data: Data) -> Labels:
    """Classification with as many labels an image as a set has, without anything of a training."""
    return (MultiLabel if data.multi_label else Classification)(data.classes)


def task_of(model: nn.Module) -> Task:
    """The task that a network was trained for, as its `problem_type` says; classification where it says nothing."""
    name = getattr(model, "pretrained_cfg", {}).get("problem_type")
    return TASKS.get(str(name), Classification).of_model(model)


def task_for_set(model: nn.Module, images: ImageSet) -> Task:
    """The task that a network is judged by on a set: classification with as many labels an image as the set has, or
    another one that the network was trained for."""
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
    "is_multi_label",
    "label_names",
    "open_for",
    "register_task",
    "task_for",
    "task_for_set",
    "task_of",
    "wilson_interval",
]
