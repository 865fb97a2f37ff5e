"""From a folder of images and a trained network to a classifier of one's own."""

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vismoe.data import Data, scaled, shrunk
from vismoe.data import tell as tell_summary
from vismoe.inference import evaluate, save_classifier
from vismoe.moe import MoE
from vismoe.parallel import resolve_device
from vismoe.training import Recipe, Run, Status, TrainingStoppedError, fit
from vismoe.training.checkpointer import Checkpointer
from vismoe.training.report import write_report
from vismoe.training.run import CHECKPOINTS, INITIAL, MODEL, SPLIT
from vismoe.training.state import begin
from vismoe.vit.places import find_blocks
from vismoe.weights import data_config, load_network

from .claim import REPORT, check, free, withdraw
from .freezing import Trained, freeze
from .options import Options
from .outcome import write_outcome
from .parts import Parts, open_parts
from .prepare import prepare
from .rules import choose, kept_side
from .start import check_source

SHARES = {"all": 1.0, "last-third": 1 / 3, "experts": 1 / 3, "head": 0.0}
"""Of the blocks that backward passes through."""


@dataclass(frozen=True)
class Finetuned:
    """A finished adaptation: its run folder, and what `report.json` in it says."""

    run: Run
    report: dict[str, Any]


def finetune(
    options: Options,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    max_unreadable: float = 0.1,
    watch: Callable[[Status], None] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Finetuned:
    """Trains a classifier of the classes of a set, and leaves a run folder with all there is to know of it.

    The set is looked at and split so that no image has a copy, exact or near, in another part. A trained network's
    new head is first fitted by logistic regression on its features; then what `options.train` names is trained by the
    engine of `vismoe train`, and the result is kept if the validation part likes it no less than that head alone. A
    temperature is fitted there too and built into the classifier. The report is of the test part, which nothing is
    chosen by.

    **Arguments:** `out`: the run folder, by default the first of `runs/finetune`, `runs/finetune-2`, … that is free or
    an unfinished run of the same options: that goes on; `max_unreadable`: share of files that may be damaged; `watch`:
    told a `Status` every few steps; `tell`: told what was found and chosen, line by line.

    **Raises:** ValueError, FileNotFoundError for what cannot be followed; FileExistsError where `out` is something
    else; TrainingStoppedError when asked to stop, once a model as it was then is in the run folder.
    """
    began, where = time.monotonic(), resolve_device(device)
    path = Path(out) if out is not None else free(options)
    check(options, path)
    check_source(options.source)
    parts = open_parts(options.data, options.seed, max_unreadable, workers)
    tell(tell_summary(parts.summary))
    tell(parts.told)
    if options.source is None:
        tell("no --from: a small network is trained from scratch; starting from a trained one does much better")

    start, probe = prepare(options, parts, path, where, workers)
    if not any(isinstance(module, MoE) for module in start.modules()):
        tell("the network is dense; --sparse makes experts of some of its MLPs")
    elif options.source is None:
        tell("the network is sparse; --dense trains one without experts")
    if probe is not None and parts.validated:
        tell(f"a linear classifier on the frozen network: {probe['validation']:.4f} on the validation part")
    how: Trained = options.train if options.train != "auto" else "all"
    if options.train == "auto" and options.trained and where.type == "cpu" and find_blocks(start) is not None:
        how = "last-third"
    try:
        freeze(start, how, not options.freeze_router)
        chosen = choose(
            start,
            parts.fitting,
            options.trained,
            where,
            SHARES[how],
            options.epochs,
            options.batch_size,
            options.learning_rate,
            options.class_weights,
            parts.uneven,
            options.dtype,
        )
    except ValueError:
        withdraw(path)
        raise
    if how != "head":
        tell(f"training {how}: {'; '.join(chosen.reasons)}")
    recipe = replace(
        chosen.recipe,
        model=options.source or start.pretrained_cfg["architecture"],
        split_seed=options.seed,
        seed=options.seed,
        device=device,
        workers=workers,
        max_unreadable=max_unreadable,
    )
    if not parts.validated:
        recipe = replace(recipe, keep="last", patience=0)
    if how == "head":
        run = _head_alone(recipe, path, parts, start)
    else:
        if (saved := Checkpointer(path / CHECKPOINTS, warn=tell).newest()) is not None:
            tell(f"goes on after step {saved['step']}")
        run = _fit(recipe, path, parts, start, watch)
        tell(_ending(run, parts.score))
    _write_split(run, parts)
    network = run.load_model()
    if probe is not None and parts.validated and run.summary[parts.score] < probe["validation"]:
        tell(f"training made it no better ({run.summary[parts.score]:.4f}): the linear classifier is kept")
        network, how = load_network(path / INITIAL), "head"
    report = write_outcome(run, network, parts, probe, _origin(options, how, start), workers)
    report |= {"trained": how, "minutes": round((time.monotonic() - began) / 60, 2)}
    run.write(REPORT, report)
    for name in (CHECKPOINTS, INITIAL):  # several times the weights, and of use only to a run that is to go on
        shutil.rmtree(path / name, ignore_errors=True)
    return Finetuned(run, report)


def _fit(recipe: Recipe, path: Path, parts: Parts, start: nn.Module, watch: Callable[[Status], None] | None) -> Run:
    try:
        return fit(recipe, path, watch, resume=True, data=_kept_small(parts.fitting, start), network=lambda: start)
    except TrainingStoppedError as error:
        if (saved := Checkpointer(path / CHECKPOINTS).newest()) is not None:
            weights = {name: tensor for name, tensor in saved.items() if name.startswith("model.")}
            start.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
            save_classifier(start, path / MODEL, parts.fitting)
        raise TrainingStoppedError(
            error.signal,
            f"stopped by {signal.Signals(error.signal).name}: {path / MODEL} is the model as it is now, neither tested "
            "nor calibrated; the same command again goes on",
        ) from error


def _kept_small(data: Data, model: nn.Module) -> Data:
    """The set with its images kept in memory, as large as they are needed, where that is large enough."""
    train, config = data.parts[0], data_config(model)
    side = kept_side(train, max(config["input_size"][1:]))
    return data if side is None else replace(data, train=shrunk(train, side), val=scaled(data.val, config))


def _head_alone(recipe: Recipe, path: Path, parts: Parts, start: nn.Module) -> Run:
    """A run of no step: the head was fitted already."""
    data = parts.fitting
    run = Run.reopen(path, recipe, data) if Run.of(path) == Run(path) else Run.create(path, recipe, data)
    run.forget_after(-1)
    state, evaluation = begin(start, recipe), evaluate(start, data.val)
    run.log({"step": 0} | evaluation.logged)
    save_classifier(start, run.path / MODEL, data)
    write_report(run, state, data, evaluation)
    return run


def _write_split(run: Run, parts: Parts) -> None:
    run.write(SPLIT, {"test": [file for file, part in parts.rows if part == "test"], "files": dict(parts.rows)})


def _origin(options: Options, how: str, start: Any) -> str:
    if not options.trained:
        return f"Trained from scratch with vismoe: {start.pretrained_cfg['architecture']}, seed {options.seed}."
    trained = "its classifier alone" if how == "head" else f"{how} trained"
    licence = start.pretrained_cfg.get("license")
    return f"Fine-tuned with vismoe from {_named(options.source)} ({trained}, seed {options.seed}). " + (
        f"Its licence: {licence}." if licence else "Its licence is not in its files: look where it is from."
    )


def _named(source: str | None) -> str:
    """A source as strangers may read it: of a path its last part."""
    return Path(source).name if source is not None and Path(source).exists() else str(source)


def _ending(run: Run, score: str) -> str:
    """How long the training went on, and which of its weights are kept."""
    steps = [line for line in run.metrics if score in line]
    last, recipe = steps[-1]["step"], run.recipe
    kept = max(steps, key=lambda line: line[score]) if recipe.keep == "best" else steps[-1]
    early = f", {recipe.patience} evaluations without a better one" if last < recipe.steps else ""
    return f"ended after step {last} of {recipe.steps}{early}; kept are the weights of step {kept['step']}"
