"""Trains by a recipe and writes a run folder, in one process or several."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from vismoe.data import Data, ImageSet, check_batch_size, without_files
from vismoe.parallel import Stop, join_mesh, resolve_device
from vismoe.parallel.hung import limited_patience
from vismoe.tasks import open_for, task_for
from vismoe.vit import unfused_attention

from ..checkpointer import Checkpointer
from ..recipe import Recipe
from ..report import write_report
from ..run import CHECKPOINTS, MODEL, Run
from ..state import begin, build
from ..step import Trainer
from ..tracker import check_tracker, tracking
from .balance import AverageBalance
from .meter import Status
from .opening import (
    check_extra_eval,
    check_group_column,
    check_processes,
    describe_data,
    open_run,
    warn,
)
from .steps import run_steps


def fit(
    recipe: Recipe,
    out: Path,
    on_status: Callable[[Status], None] | None = None,
    resume: bool = False,
    data: Data | None = None,
    network: Callable[[], nn.Module] | None = None,
    extra_eval: Mapping[str, ImageSet] | None = None,
    log: Callable[[str], None] | None = None,
) -> Run:
    """Trains by a recipe and writes a run folder.

    With several processes (`torchrun`), each process computes its share of every batch, and the main process writes the
    run folder.

    **Arguments:**

    - `recipe`: the recipe.
    - `out`: the run folder.
    - `on_status`: called with a `Status` every few steps; default: no call.
    - `resume`: whether to resume the run in `out` from its newest undamaged checkpoint, or from the beginning if there
      is none; default False. The result is bit-identical to that of an uninterrupted run. `steps` and `cooldown_steps`
      may change if all steps already done would have had the same learning rates.
    - `data`: the data set, instead of the recipe's; all images must be readable (see `vismoe.data.fingerprint_all`).
      Default: the recipe's.
    - `network`: function that returns the network to train, instead of the recipe's; parameters with `requires_grad`
      False are not trained. Default: the recipe's.
    - `extra_eval`: additional image sets by name. They are evaluated whenever the validation split is, and logged as
      NAME/METRIC; they are never used for selection. Default: none.
    - `log`: called with each line of text about the data set, before the first step; default: no call.

    **Returns:** the finished `Run`. If the data set has a test split, the entry "test" of its summary has the metrics
    of the final weights on it.

    **Raises:**

    - FileExistsError if `out` exists and `resume` is False; before anything is written.
    - ValueError, FileNotFoundError if the recipe cannot be used, too many files are unreadable, or the run to resume
      has another recipe or data set; before anything is written.
    - TrainingDivergedError if the loss or the gradient is not finite in too many steps in a row.
    - TrainingStoppedError after SIGTERM or SIGINT, when a checkpoint has been written. If the signal comes after the
      last step, a line on stderr says so, and the run is finished; a second signal stops at once.
    """
    check_tracker(recipe.track)
    with join_mesh() as mesh:
        check_processes(mesh, recipe)
        device = mesh.device(resolve_device(recipe.device))
        # Images are decoded only after the network is built, so that errors in the recipe are found first.
        open_set = partial(open_for, recipe.task, recipe.data, recipe.split_seed, group_column=recipe.group_column)
        opened = open_set(moved=()) if data is None else data
        if opened.train is None:
            raise ValueError(f"{recipe.data} has no training split: expected the folder {recipe.data}/train")
        if data is None:
            check_group_column(opened)
        task = task_for(recipe.task, opened, recipe.to_json())
        task.check(opened)
        recipe, changes = recipe.without(task.unused_settings, task.name)
        if changes and mesh.is_main:
            warn(f"note: {changes}")
        extra_eval = check_extra_eval(extra_eval or {}, task)
        check_batch_size(recipe.batch_size, mesh.size)
        state = begin((build(recipe, opened, task) if network is None else network()).to(device), recipe)
        run, moved, left_out = mesh.run_on_main(
            lambda: open_run(recipe, state.model, out, opened, resume, None if data is not None else open_set)
        )
        if data is None and moved:
            opened = open_set(moved=moved)
        run, data = replace(run, writes=mesh.is_main), without_files(opened, left_out)
        task = task_for(recipe.task, data, recipe.to_json())
        if log is not None and mesh.is_main:
            describe_data(data, state.model, log)
        unfuses = device.type == "cpu" and recipe.dtype == "bfloat16"
        answer = warn if mesh.is_main else lambda text: None
        checkpoints = Checkpointer(
            run.path / CHECKPOINTS, recipe.keep_checkpoints, mesh, warn, recipe.async_checkpoints
        )
        unfused = unfused_attention(state.model) if unfuses else nullcontext()
        with run.lock(), checkpoints as checkpointer, Stop(answer) as stop, unfused:
            if (saved := checkpointer.newest(state.template)) is not None:
                state.load_state_dict(saved)
                answer(f"resumed from step {state.step} of {recipe.steps}")
            run.truncate_metrics(state.step)
            run.update_length(recipe)
            with tracking(run, recipe, state.step) as track:
                trainer = Trainer(recipe, state, task, mesh, track)
                balance = AverageBalance(trainer, data.train_and_val[0])
                with limited_patience(mesh, recipe.hang_timeout):
                    evaluation = run_steps(
                        checkpointer, trainer, balance, data, extra_eval, stop, on_status if mesh.is_main else None
                    )
                checkpointer.wait()
                stop.finish(_rest_of_run(max(checkpointer.steps(), default=None)))
                if recipe.keep == "best" and (best_step := state.best_step) not in (None, state.step):
                    state.load_state_dict(checkpointer.load(best_step, state.template))
                    evaluation = balance.evaluate(data.val)
                tested = None if data.test is None else balance.evaluate(data.test)
                balance.update()
            if mesh.is_main or recipe.expert_parallel > 1:  # all processes have a part of a distributed network
                task.save(state.evaluated, run.path / MODEL)
            if mesh.is_main:
                write_report(run, state, task, data, evaluation, tested)
    return run


def _rest_of_run(checkpoint: int | None) -> str:
    """What is done after the last step, as an answer to a signal. `checkpoint`: the step of the newest checkpoint."""
    again = "from the beginning" if checkpoint is None else f"from the checkpoint of step {checkpoint}"
    return (
        "the training is done; the last evaluation and the report are being finished. A second signal stops at once; "
        f"the run can then be resumed, {again}"
    )
