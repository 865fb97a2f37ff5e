"""Opens the data set of a run, with the splits of the run."""

from collections.abc import Collection
from dataclasses import replace

from vismoe.data import NAMED, Data, ImageSet, without_files
from vismoe.tasks import open_for
from vismoe.training import Run, describe
from vismoe.training.run import OPTIONS, SPLIT


def run_splits(run: Run) -> Data:
    """Opens the data set of a run, for evaluation.

    - For a run of `finetune`: `train` has the run's training and validation images, `val` its test images. Files that
      were added to the folder since are not used.
    - For other runs on a set with a test split: the same.
    - Otherwise: `train` is the training split, `val` the validation split, on which the best weights may have been
      selected.

    `left_out` is empty, because the run has already listed these files.

    **Arguments:**

    - `run`: the run.

    **Raises:** ValueError if the splits are not known any more, or not yet.
    """
    return open_splits(run).for_testing


def open_splits(run: Run) -> Data:
    """The data set of a run, with its training, validation and, if the set has one, test split."""
    name, task = run.recipe.data, run.recipe.task
    if run.test_files is not None:
        return _written_splits(run, open_for(task, name).for_testing)
    if (run.path / OPTIONS).is_file():
        raise ValueError(
            f"{run.path} is not finished, and the split is only written at the end: "
            "give the same `vismoe finetune` command again to finish it, or name another set with --data"
        )
    opened = open_for(task, name, run.recipe.split_seed, moved=run.moved)
    data = replace(without_files(opened, run.left_out), left_out=())
    if describe(data)["digest"] != run.data["digest"] and name not in NAMED and open_for(task, name).train is None:
        raise ValueError(
            f"{name} has changed since {run.path} was trained on it, so its validation images are not known any more: "
            "restore it, or name other images with --data"
        )
    return data


def split_of_files(run: Run) -> dict[str, str]:
    """The split of each file of a run's data set: "train", "validation" or "test" for a run of `finetune` and for a set
    with three splits; otherwise "train" or "held-out" (the validation split)."""
    if run.test_files is not None:
        files: dict[str, str] = run.read(SPLIT)["files"]
        return files
    data = open_splits(run)
    if data.test is None:
        return dict.fromkeys(data.train_and_val[0].files, "train") | dict.fromkeys(data.val.files, "held-out")
    splits = {"train": data.train_and_val[0], "validation": data.val, "test": data.test}
    return {file: name for name, images in splits.items() for file in images.files}


def _written_splits(run: Run, data: Data) -> Data:
    files = split_of_files(run)
    if not files:  # a named set has fixed splits
        return data
    test = {file for file, part in files.items() if part == "test"}
    train, val = _with_files(data.train_and_val[0], files.keys() - test), _with_files(data.val, test)
    if not len(val):
        raise ValueError(f"{data.name} no longer has any of the test images of {run.path}")
    return replace(data, train=train if len(train) else None, val=val, left_out=())


def _with_files(images: ImageSet, files: Collection[str]) -> ImageSet:
    return images.subset([index for index, file in enumerate(images.files) if file in files])
