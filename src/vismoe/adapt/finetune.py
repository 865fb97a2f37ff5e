"""Fine-tunes a trained network on a folder of images."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vismoe.parallel import join_mesh
from vismoe.training import Run, Status
from vismoe.training.run import OPTIONS
from vismoe.weights import parse_source

from .adaptation import Adaptation, Log
from .classification import ClassifierAdaptation
from .detection import DetectorAdaptation
from .options import Options
from .reserve_run import check_run_folder, free_run_folder
from .splits import open_splits


@dataclass(frozen=True)
class Finetuned:
    """The result of `finetune`.

    - `run`: the run folder.
    - `report`: the content of its `report.json`.
    - `lines`: the result on the test split as lines of text.
    """

    run: Run
    report: dict[str, Any]
    lines: list[str]


def finetune(
    data: str | Options,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    max_unreadable: float = 0.1,
    expert_parallel: int = 1,
    on_status: Callable[[Status], None] | None = None,
    log: Log = lambda text: None,
    **options: Any,
) -> Finetuned:
    """Trains a classifier on a set of images, or a detector on a set with boxes, and writes the model and its report
    into a run folder.

    The set is split so that no image has a copy, exact or near, in another split. A trained network first gets a new
    head, which is fitted by logistic regression on the network's features (a linear classifier). Then the part that
    `train` names is trained. The result is kept if its validation score is at least the linear classifier's, otherwise
    the linear classifier is kept. A temperature is fitted on the validation split and becomes part of the head. The
    report is on the test split, which is never used for selection.

    **Arguments:**

    - `data`: a folder of class folders, or of images with a metadata.csv; a zip of one; "digits" or "fashion-mnist"; or
      an `Options` object with all options.
    - `out`: the run folder. Default None: the first of `runs/finetune`, `runs/finetune-2`, … that is free, or that is
      an unfinished run with the same options, which is then resumed.
    - `device`: "auto", "cpu", "cuda" or "mps"; default "auto".
    - `workers`: number of processes that load images; default 0: the current process.
    - `max_unreadable`: largest fraction of files that may be unreadable, 0 to 1; default 0.1.
    - `expert_parallel`: number of processes that share the experts of each layer, see `vismoe.parallelize`; default 1:
      each has all.
    - `on_status`: called with a `Status` every few steps; default None: no call.
    - `log`: called with each line about the set and the choices; default: no call.
    - `options`: fields of `vismoe.adapt.Options`, such as source=, epochs=, image_size=, sparse=, seed=. `source` is
      the network to start from: a run or model folder, timm:NAME, hf:ORG/NAME or PRESET.TAG; default: a small network
      with random weights.

    **Returns:** the run and its report.

    **Raises:** ValueError, FileNotFoundError for a set or options that cannot be used; FileExistsError if `out` is
    taken; TrainingStoppedError after SIGTERM or SIGINT, in the training or in the test: the run folder then has the
    model at that step.
    """
    if isinstance(data, Options):
        if options:
            raise ValueError("options are given twice: in an Options object and as arguments")
        request = data
    else:
        request = _options(data, options)
    if workers < 0:
        raise ValueError(f"workers={workers}: accepted are at least 0")
    started = time.monotonic()
    with join_mesh() as mesh:
        path = mesh.run_on_main(lambda: _run_folder(request, out))
        if request.source is not None:
            parse_source(request.source)  # a missing source is reported before the images are decoded
        parent = _parent_on(request)
        splits = open_splits(request.data, request.seed, max_unreadable, workers, request.group_column, parent)
        kind: type[Adaptation] = DetectorAdaptation if splits.fitting.has_boxes else ClassifierAdaptation
        mesh.check_expert_parallel(expert_parallel)
        engine = {
            "device": device,
            "workers": workers,
            "max_unreadable": max_unreadable,
            "expert_parallel": expert_parallel,
        }
        work = kind(request, path, engine, splits, parent, log, mesh, started)
        work.describe_set()
        work.build()
        work.plan()
        run = work.train(on_status)
        report = mesh.run_on_main(lambda: work.test(run))
        return Finetuned(replace(run, writes=mesh.is_main), report, work.result(report))


def _run_folder(options: Options, out: str | Path | None) -> Path:
    path = Path(out) if out is not None else free_run_folder(options)
    check_run_folder(options, path)
    return path


def _options(data: str, options: dict[str, Any]) -> Options:
    try:
        return Options(data, **options)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(Options))
        raise ValueError(f"finetune has no option {str(error).rpartition(' ')[2]}; accepted are {known}") from error


def _parent_on(options: Options) -> Run | None:
    """The run on the same set from which the source comes: the source itself, or the nearest of its ancestors; None:
    there is none."""
    source, seen = options.source, set()
    while source and (run := Run.of(source)) is not None and run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        data = run.recipe.data
        if data == options.data or Path(data).resolve() == Path(options.data).resolve():
            return run
        source = run.read(OPTIONS)["source"] if (run.path / OPTIONS).is_file() else run.recipe.weights
    return None
