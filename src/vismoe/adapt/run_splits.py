"""A run's own set, split as it was in the run."""

from collections.abc import Collection
from dataclasses import replace

from vismoe.data import NAMED, Data, ImageSet, without_files
from vismoe.tasks import open_for
from vismoe.training import Run, describe
from vismoe.training.run import OPTIONS, SPLIT


def run_splits(run: Run) -> Data:
    """The set of a run. For a run of `finetune` the splits are the files that it wrote down, whatever else is in the
    folder by now: `train` has the training and validation images, `val` the test images. So it is for another run whose
    set has a test split of its own; else `val` is the validation split, by which its best weights may have been
    selected. `left_out` is empty: the run has it.

    **Raises:** ValueError where the splits are not known any more, or not yet.
    """
    return _own_set(run).for_testing


def _own_set(run: Run) -> Data:
    """The set of a run in its splits, the validation split apart from a test split of the set's own."""
    name, task = run.recipe.data, run.recipe.task
    if run.test_files is not None:
        return _written_splits(run, open_for(task, name).for_testing)
    if (run.path / OPTIONS).is_file():
        raise ValueError(
            f"{run.path} is not finished, and its split is written at the end: "
            "give the same `vismoe finetune` again to finish it, or name another set with --data"
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
    """The split of each file of a run's own set: train, validation or test for a run of `finetune` and for a set that
    has these three; otherwise train or held-out."""
    if run.test_files is not None:
        files: dict[str, str] = run.read(SPLIT)["files"]
        return files
    data = _own_set(run)
    if data.test is None:
        return dict.fromkeys(data.train_and_val[0].files, "train") | dict.fromkeys(data.val.files, "held-out")
    splits = {"train": data.train_and_val[0], "validation": data.val, "test": data.test}
    return {file: name for name, images in splits.items() for file in images.files}


def _written_splits(run: Run, data: Data) -> Data:
    files = split_of_files(run)
    if not files:  # a named set has its own splits
        return data
    test = {file for file, part in files.items() if part == "test"}
    train, val = _with_files(data.train_and_val[0], files.keys() - test), _with_files(data.val, test)
    if not len(val):
        raise ValueError(f"{data.name} has none of the images any more that {run.path} was tested on")
    return replace(data, train=train if len(train) else None, val=val, left_out=())


def _with_files(images: ImageSet, files: Collection[str]) -> ImageSet:
    return images.subset([place for place, file in enumerate(images.files) if file in files])
