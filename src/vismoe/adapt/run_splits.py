"""A run's own set, in the parts that the run had of it."""

from collections.abc import Collection
from dataclasses import replace

from vismoe.data import NAMED, Data, ImageSet, without
from vismoe.tasks import open_for
from vismoe.training import Run, describe
from vismoe.training.run import ASKED, SPLIT


def run_splits(run: Run) -> Data:
    """The set of a run: `train` is what it was trained on and what choices were made by, `val` what it was tested on.
    Of a run of `finetune` these are the files that it wrote down, whatever else is in the folder by now; of another one
    the part that it held out, which its best weights may have been chosen by. `left_out` is empty: the run has it.

    **Raises:** ValueError where which images these are cannot be told any more, or not yet.
    """
    name, task = run.recipe.data, run.recipe.task
    if run.test_files is not None:
        return _written_down(run, open_for(task, name))
    if (run.path / ASKED).is_file():
        raise ValueError(
            f"{run.path} is not finished, and which images are its test part is written at the end: "
            "the same `vismoe finetune` goes on; or name another set with --data"
        )
    data = open_for(task, name, run.recipe.split_seed, moved=run.moved)
    data = replace(without(data, run.left_out), left_out=())
    if describe(data)["digest"] != run.data["digest"] and name not in NAMED and open_for(task, name).train is None:
        raise ValueError(
            f"{name} has changed since {run.path} was trained on it, and which of its images were held out cannot be "
            "told any more: make it as it was, or name other images with --data"
        )
    return data


def split_of_files(run: Run) -> dict[str, str]:
    """Each file of a run's own set with the part that it was in: of a run of `finetune` train, validation or test, of
    another one train or held-out."""
    if run.test_files is not None:
        files: dict[str, str] = run.read(SPLIT)["files"]
        return files
    data = run_splits(run)
    return dict.fromkeys(data.parts[0].files, "train") | dict.fromkeys(data.val.files, "held-out")


def _written_down(run: Run, data: Data) -> Data:
    files = split_of_files(run)
    if not files:  # of a named set, whose parts are its own
        return data
    test = {file for file, part in files.items() if part == "test"}
    train, val = _those(data.parts[0], files.keys() - test), _those(data.val, test)
    if not len(val):
        raise ValueError(f"{data.name} has none of the images any more that {run.path} was tested on")
    return replace(data, train=train if len(train) else None, val=val, left_out=())


def _those(images: ImageSet, files: Collection[str]) -> ImageSet:
    return images.subset([place for place, file in enumerate(images.files) if file in files])
