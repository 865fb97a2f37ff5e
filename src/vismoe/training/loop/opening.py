"""What precedes the first step: opens the data set and the run, and checks whether they fit."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vismoe.data import (
    Data,
    ImageSet,
    check_images,
    find_group_column,
    find_name_groups,
    format_classes,
    format_group_column,
    format_name_groups,
    format_reasons,
    format_unnamed,
    note_of_levels,
    shared_groups,
    without_files,
)
from vismoe.files import counted
from vismoe.files.checksums import sha256_of_package
from vismoe.parallel import Mesh
from vismoe.tasks import Task, open_for
from vismoe.weights import data_config

from ..checkpointer import Checkpointer
from ..recipe import Recipe
from ..run import CHECKPOINTS, DATA, SPLIT, Run

SHRINK_WARNING = 4
"""Both sides of the images ÷ those of the network's input, from which on a warning is printed."""


def check_processes(mesh: Mesh, recipe: Recipe) -> None:
    """Raises ValueError if the processes have different recipes or programs, or cannot share experts as the recipe
    asks."""
    if mesh.size > 1:
        program = {"vismoe's code": sha256_of_package(), "the version of PyTorch": torch.__version__}
        mesh.check_agreement(recipe.to_json() | program)
    mesh.check_expert_parallel(recipe.expert_parallel)


def describe_data(data: Data, model: nn.Module, log: Callable[[str], None]) -> None:
    """Logs the classes, the sizes of the splits, and the image size in training."""
    if classes := format_classes(data):
        log(classes)
    _, height, width = data_config(model)["input_size"]
    test = "" if data.test is None else f", {counted(len(data.test), 'test image')}"
    log(
        f"{counted(len(data.train_and_val[0]), 'training image')}, {counted(len(data.val), 'validation image')}{test}; "
        f"trained at {height} × {width} pixels"
    )
    if unnamed := format_unnamed(data):
        log(f"note: {unnamed}")


def check_group_column(data: Data) -> None:
    """Raises ValueError if a group of the `group_column` is in both the training and the validation split. This happens
    only if the data set came with its splits: a random split keeps groups together."""
    if data.group_column is None or data.moved is not None or data.train is None:
        return
    if (shared := shared_groups(data.train, data.val, data.group_column)) is not None:
        raise ValueError(
            f"group_column={data.group_column!r}: {shared.shared} of {shared.evaluated} validation images of "
            f"{data.name} have a value that training images have too: move the files so that each value is "
            "in one split, or put all files into one folder without splits, which is then split at random"
        )


def _check_images_of_parent(recipe: Recipe, data: Data) -> None:
    """Raises ValueError if the run of the initial weights was trained on validation images of this run."""
    parent = Run.of(recipe.weights) if recipe.weights else None
    if parent is None or Path(parent.recipe.data).resolve() != Path(recipe.data).resolve():
        return
    old = parent.recipe
    if parent.test_files is not None:
        trained = {file for file, split in parent.read(SPLIT)["files"].items() if split == "train"}
        seed, advice = 0, "`vismoe finetune --from` keeps its split"
    else:
        parent_data = open_for(old.task, old.data, old.split_seed, moved=parent.moved)
        trained, seed = set(parent_data.train_and_val[0].files), old.split_seed
        grouped = "" if old.group_column is None else f" --group-column {old.group_column}"
        advice = f"--split-seed {seed}{grouped} keeps its split"
    shared = len(trained.intersection(data.val.files))
    if shared or (recipe.data == "digits" and recipe.split_seed != seed):
        number = f"{shared} of {len(data.val)}" if shared else "some"
        raise ValueError(
            f"weights={recipe.weights!r}: it was trained on {number} of the validation images, so metrics would be too "
            f"good: {advice}, or use other images with --data"
        )


def check_extra_eval(extra_eval: Mapping[str, ImageSet], task: Task) -> Mapping[str, ImageSet]:
    """Returns `extra_eval`.

    **Raises:** ValueError for an image set that the task cannot evaluate.
    """
    for name, images in extra_eval.items():
        if not len(images):
            raise ValueError(f"extra_eval[{name!r}] has no images: expected at least one")
        task.check_extra_eval(name, images)
    return extra_eval


def open_run(
    recipe: Recipe, model: nn.Module, out: Path, data: Data, resume: bool, open_set: Callable[..., Data] | None
) -> tuple[Run, Any, Any]:
    """Creates the run, or opens the run to resume.

    **Arguments:**

    - `recipe`, `out`, `resume`: as in `fit`.
    - `model`: the network to train.
    - `data`: the data set.
    - `open_set`: opens the data set again, if its images are not decoded yet; None if they are.

    **Returns:** the run, the files that were moved between the splits (see `Data.moved`), and the files left out.
    """
    if resume and Run.of(out) == Run(out):
        if open_set is not None and data.moved is not None:
            data = open_set(moved=Run(out).moved)
        run = Run.reopen(out, recipe, data, max(Checkpointer(out / CHECKPOINTS).steps(), default=0))
    else:
        Run.check_free(out)
        if open_set is not None:
            data = open_set(workers=recipe.workers) if data.moved is not None else data
            data = check_images(data, recipe.max_unreadable, recipe.workers)
            _warn_of_size(data, data_config(model)["input_size"][1:])
            if (shared := find_group_column(data, fewest=2)) is not None:
                warn(format_group_column(shared))
            elif (by_name := find_name_groups(data)) is not None:
                warn(f"note: {format_name_groups(by_name)}")
            if text := note_of_levels(data, data_config(model).get("max_level")):
                warn(f"note: {text}")
        _check_images_of_parent(recipe, data)
        run = Run.create(out, recipe, data)
    if left_out := run.left_out:
        number = len(left_out)
        files = "1 file cannot be used and is" if number == 1 else f"{number} files cannot be used and are"
        if open_set is not None:  # otherwise `data` may be only a part of the set
            remaining = without_files(data, left_out)
            test = 0 if remaining.test is None else len(remaining.test)
            files = f"{number} of {number + sum(map(len, remaining.train_and_val)) + test} files cannot be used and are"
        warn(f"{files} left out: {run.path / DATA} names them ({format_reasons(left_out)})")
    if open_set is not None:
        for text in data.notes:
            warn(f"note: {text}")
    return run, data.moved, left_out


def _warn_of_size(data: Data, trained_at: tuple[int, int]) -> None:
    """Warns if the images are many times larger than the input of the network."""
    if data.typical_size is None:
        return
    (width, height), (to_height, to_width) = data.typical_size, trained_at
    if min(width / to_width, height / to_height) >= SHRINK_WARNING:
        warn(
            f"note: images of about {width} × {height} pixels are resized to {to_width} × {to_height}, where details "
            "are lost: `vismoe train images` uses 64 × 64, and --image-size sets another size"
        )


def warn(text: str) -> None:
    print(f"vismoe: {text}", file=sys.stderr)
