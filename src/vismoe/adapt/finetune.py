"""Fine-tunes a trained network on a folder of images."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from vismoe.data import (
    MAX_LEVEL,
    Data,
    cached_at_scale,
    cached_images,
    check_batch_size,
    format_group_column,
    format_name_groups,
    format_summary,
    note_of_levels,
)
from vismoe.explain import routing_images
from vismoe.inference import Predictor, evaluate
from vismoe.moe import MoE
from vismoe.parallel import Mesh, join_mesh, resolve_device
from vismoe.tasks import classification_of
from vismoe.training import Recipe, Run, Status, TrainingStoppedError, fit
from vismoe.training.checkpointer import Checkpointer
from vismoe.training.loop import signal_name
from vismoe.training.report import write_report
from vismoe.training.run import CHECKPOINTS, INITIAL, MODEL, OPTIONS, SPLIT, SUMMARY
from vismoe.training.state import begin
from vismoe.weights import data_config, load_network, parse_source

from .calibrate import ENOUGH
from .freezing import SHARES, choose_trained, experts_are_equal, freeze
from .initial_model import initial_model
from .options import Options, Trained
from .outcome import write_outcome
from .reserve_run import REPORT, check_run_folder, free_run_folder, withdraw
from .rules import choose, kept_side
from .splits import Splits, open_splits

Log = Callable[[str], None]
UNTRAINED_EXPERTS = (
    "the experts of this model are not trained: routing.png and a comparison with --dense say nothing about it"
)


@dataclass(frozen=True)
class Finetuned:
    """The result of `finetune`.

    - `run`: the run folder.
    - `report`: the content of its `report.json`.
    """

    run: Run
    report: dict[str, Any]


def finetune(
    data: str | Options,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    max_unreadable: float = 0.1,
    on_status: Callable[[Status], None] | None = None,
    log: Log = lambda text: None,
    **options: Any,
) -> Finetuned:
    """Trains a classifier on a set of images, and writes the model and its report into a run folder.

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
    - `on_status`: called with a `Status` every few steps; default None: no call.
    - `log`: called with each line about the set and the choices; default: no call.
    - `options`: fields of `vismoe.adapt.Options`, such as source=, epochs=, image_size=, sparse=, seed=. `source` is
      the network to start from: a run or model folder, timm:NAME, hf:ORG/NAME or PRESET.TAG; default: a small network
      with random weights.

    **Returns:** the run and its report.

    **Raises:** ValueError, FileNotFoundError for a set or options that cannot be used; FileExistsError if `out` is
    taken; TrainingStoppedError after SIGTERM or SIGINT: the run folder then has the model at that step.
    """
    if isinstance(data, Options):
        if options:
            raise ValueError("options are given twice: in an Options object and as arguments")
        request = data
    else:
        request = _options(data, options)
    if workers < 0:
        raise ValueError(f"workers={workers}: accepted are at least 0")
    with join_mesh() as mesh:
        path = mesh.run_on_main(lambda: _run_folder(request, out))
        if request.source is not None:
            parse_source(request.source)  # a missing source is reported before the images are decoded
        work = _Adaptation(request, path, device, workers, max_unreadable, log, mesh)
        work.describe_set()
        work.build()
        work.plan()
        run = work.train(on_status)
        return Finetuned(replace(run, writes=mesh.is_main), mesh.run_on_main(lambda: work.report(run)))


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


class _Adaptation:
    """One fine-tuning from a set to a report. Each phase uses the results of those before it. If there are several
    processes, each runs all phases, and only the main process logs and writes."""

    def __init__(
        self, options: Options, path: Path, device: str, workers: int, max_unreadable: float, log: Log, mesh: Mesh
    ):
        self.options, self.path, self.mesh = options, path, mesh
        self.log: Log = log if mesh.is_main else lambda text: None
        self.engine: dict[str, Any] = {"device": device, "workers": workers, "max_unreadable": max_unreadable}
        self.device, self.workers = mesh.device(resolve_device(device)), workers
        self.started = time.monotonic()
        self.parent = _parent_on(options)
        self.splits = open_splits(
            options.data, options.seed, max_unreadable, workers, options.group_column, self.parent
        )

    def describe_set(self) -> None:
        """Logs a summary of the set and the sizes of its splits."""
        self.log(format_summary(self.splits.summary))
        self.log(self.splits.sizes)
        if self.parent is not None:
            self.log(f"the split is that of {self.parent.path}, which was not trained on any of the test images")
        elif (source := self.options.source) is not None and Path(source).exists() and Run.of(source) is None:
            self.log(
                f"note: the training images of {source} are not known; if it was trained on test images, the metrics "
                "are too good"
            )
        if self.splits.unnamed is not None:
            self.log(format_group_column(self.splits.unnamed))
        if self.splits.by_name is not None:
            self.log(f"note: {format_name_groups(self.splits.by_name)}")
        if self.options.source is None:
            self.log(
                "no --from: a small network is trained from scratch; a trained network is usually much more accurate. "
                "From scratch, compare it with a small convolutional network: "
                f"vismoe train images --data {self.options.data} --model timm:mobilenetv3_small_100"
            )

    def build(self) -> None:
        """Makes the initial network, and evaluates its linear classifier."""
        built: list[tuple[Any, dict[str, float] | None]] = []
        self.mesh.run_on_main(lambda: built.append(self._initial_model()))
        self.network, self.probe = built[0] if built else self._initial_model()  # the others load what main wrote
        if text := note_of_levels(self.splits.test, data_config(self.network).get("max_level")):
            self.log(f"note: {text}")
        if not any(isinstance(module, MoE) for module in self.network.modules()):
            self.log("the network is dense; --sparse replaces some of its MLPs by experts")
        elif self.options.source is None:
            self.log("the network is sparse; --dense trains one without experts")
        if self.options.freeze_router and not self.options.trained:
            self.log("warning: --freeze-router without a trained network: the routers keep their random weights")
        if self.probe is not None and self.splits.validated:
            score = self.probe["validation"]
            self.log(f"a linear classifier on the frozen network: {score:.4f} on the validation split")

    def _initial_model(self) -> tuple[Any, dict[str, float] | None]:
        return initial_model(self.options, self.splits, self.path, self.device, self.workers, self.log)

    @cached_property
    def trained_part(self) -> Trained:
        """Which weights are trained. Only the classifier, if the linear classifier makes no error on the validation
        split."""
        if self.options.train == "auto" and not self.options.makes_sparse and self._perfect:
            return "head"
        return choose_trained(self.options, self.network, self.device)

    @property
    def _perfect(self) -> bool:
        """Whether the linear classifier makes no error on the validation split, so that no improvement can be
        measured."""
        enough = self.splits.validated and len(self.splits.fitting.val) >= ENOUGH
        return enough and self.probe is not None and self.probe["validation"] == 1.0

    def plan(self) -> None:
        """Chooses the recipe. A resumed run keeps its recipe, because the rules may have changed since."""
        try:
            freeze(self.network, self.trained_part, not self.options.freeze_router)
            saved_recipe = self.mesh.run_on_main(
                lambda: Run(self.path).recipe if Run.of(self.path) == Run(self.path) else None
            )
            recipe = self._chosen_recipe() if saved_recipe is None else saved_recipe
            if self.trained_part != "head":
                check_batch_size(recipe.batch_size, self.mesh.size)
        except ValueError:
            if self.mesh.is_main:
                withdraw(self.path)
            raise
        self.recipe = replace(recipe, **self.engine)
        if self.trained_part == "head":
            if self.options.train == "auto":
                self.log(
                    "the linear classifier makes no error on the validation split, so no improvement can be measured: "
                    "it is kept without further training; --train last-third or --train all trains anyway"
                )
        elif shortage := recipe.shortage(images := len(self.splits.fitting.train_and_val[0])):
            # The fewest epochs that are enough steps, as an epoch's last batch is not always full.
            epochs = (recipe.enough_steps(images) - 1) * recipe.batch_size // images + 1
            self.log(f"warning: {shortage}: use --epochs {epochs} or more")

    def _chosen_recipe(self) -> Recipe:
        """The recipe that the rules choose. Logs the reasons."""
        options = self.options
        choice = choose(options, self.network, self.splits, self.device, SHARES[self.trained_part], self.mesh.size)
        choice = self.mesh.run_on_main(lambda: choice)  # other processes may see another amount of free memory
        if self.trained_part != "head":
            self.log(f"training {self.trained_part}: {'; '.join(choice.reasons)}")
        selection: dict[str, Any] = {} if self.splits.validated else {"keep": "last", "patience": 0}
        return replace(
            choice.recipe,
            model=options.source or self.network.pretrained_cfg["architecture"],
            split_seed=options.seed,
            seed=options.seed,
            group_column=options.group_column,
            **selection,
        )

    def train(self, on_status: Callable[[Status], None] | None) -> Run:
        """Trains or resumes, and writes the split of each file into the run folder."""
        if self.trained_part == "head":
            run: Run = self.mesh.run_on_main(
                lambda: _write_untrained(self.recipe, self.path, self.splits.fitting, self.network)
            )
        else:
            if self.mesh.is_main and (saved := Checkpointer(self.path / CHECKPOINTS, warn=self.log).newest()):
                self.log(f"resuming after step {saved['step']}")
            run = _fit(self.recipe, self.path, self.splits.fitting, self.network, on_status, self.mesh.is_main)
        if self.mesh.is_main:
            rows = self.splits.rows
            run.write(SPLIT, {"test": [file for file, part in rows if part == "test"], "files": dict(rows)})
        return run

    def report(self, run: Run) -> dict[str, Any]:
        """Chooses between the trained network and its linear classifier, evaluates it on the test split, and writes
        the report."""
        network, kept, notes = run.load_model(), self.trained_part, []
        score = run.summary[self.splits.score]
        if self.probe is not None and self.splits.validated and score < self.probe["validation"]:
            network, kept = load_network(self.path / INITIAL), "head"
            _write_summary_of_kept(run, network.to(self.device), self.splits, self.workers)
            notes.append(
                f"the linear classifier ({self.probe['validation']:.4f} on the validation split) is better than the "
                f"trained network ({score:.4f}) and is kept"
            )
        if kept == "head" and (caption := self._caption_of_kept(network)):
            network, task = network.to(self.device), classification_of(self.splits.fitting)
            predictor, images = Predictor(network, task, batch_size=256), self.splits.fitting.val
            routing_images(predictor, images, self.splits.fitting.classes, self.path, caption)
        if kept == "head" and experts_are_equal(network):
            notes.append(UNTRAINED_EXPERTS)
        if self.trained_part != "head":
            self.log(_ending(run, self.splits.score, is_kept=kept != "head"))
        for text in notes:
            self.log(text)
        origin = _origin(self.options, kept, self.network, notes)
        report = write_outcome(run, network, self.splits, self.probe, origin, self.workers)
        if report["temperature_note"] is not None:
            self.log(report["temperature_note"])
        minutes = round((time.monotonic() - self.started) / 60, 2)
        report |= {"trained": kept, "trained_notes": notes, "minutes": minutes}
        run.write(REPORT, report)
        for name in (CHECKPOINTS, INITIAL):  # large, and a finished run does not need them
            shutil.rmtree(self.path / name, ignore_errors=True)
        return report

    def _caption_of_kept(self, network: nn.Module) -> str:
        """What routing.png must say if the linear classifier is kept; empty if the figure of the training is right."""
        if not any(isinstance(module, MoE) for module in network.modules()):
            return ""
        before = "" if self.trained_part == "head" else "network before training, kept with its linear classifier"
        untrained = "its experts are not trained" if experts_are_equal(network) else ""
        return "; ".join(filter(None, (before, untrained)))


def _fit(
    recipe: Recipe,
    path: Path,
    data: Data,
    network: nn.Module,
    on_status: Callable[[Status], None] | None,
    writes: bool,
) -> Run:
    try:
        return fit(recipe, path, on_status, resume=True, data=_cached(data, network), network=lambda: network)
    except TrainingStoppedError as error:
        if writes and (saved := Checkpointer(path / CHECKPOINTS).newest()) is not None:
            weights = {name: tensor for name, tensor in saved.items() if name.startswith("model.")}
            network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
            classification_of(data).save(network, path / MODEL)
        raise TrainingStoppedError(
            error.signal,
            f"{signal_name(error.signal)}: stopped; {path / MODEL} is the model at this step, neither tested nor "
            "calibrated; give the same command again to continue",
        ) from error


def _cached(data: Data, model: nn.Module) -> Data:
    """The set with its images cached in memory at the required size, if there is enough memory."""
    train, config = data.train_and_val[0], data_config(model)
    side = kept_side(train, max(config["input_size"][1:]))
    if side is None:
        return data
    return replace(
        data,
        train=cached_images(train, side, config.get("max_level", MAX_LEVEL)),
        val=cached_at_scale(data.val, config),
    )


def _write_untrained(recipe: Recipe, path: Path, data: Data, network: nn.Module) -> Run:
    """Writes a run without training steps, because the head is fitted already."""
    run = Run.reopen(path, recipe, data) if Run.of(path) == Run(path) else Run.create(path, recipe, data)
    run.truncate_metrics(-1)
    task = classification_of(data)
    state, evaluation = begin(network, recipe), evaluate(network, data.val, task=task)
    run.log({"step": 0} | evaluation.logged)
    task.save(network, run.path / MODEL)
    write_report(run, state, task, data, evaluation)
    return run


def _write_summary_of_kept(run: Run, network: nn.Module, splits: Splits, workers: int) -> None:
    """Writes a linear probe's evaluation into the summary; "dropped" has the metrics of the trained network."""
    evaluation = evaluate(network, splits.fitting.val, workers=workers, task=classification_of(splits.fitting))
    dropped = {name: run.summary.get(name) for name in evaluation.logged}
    figures = {"images_per_second": evaluation.images_per_second, "load": evaluation.load}
    figures["weakness"] = evaluation.weakness
    run.write(SUMMARY, {**run.summary, **evaluation.logged, **figures, "dropped": dropped})


def _origin(options: Options, part: Trained, network: Any, notes: Sequence[str]) -> str:
    """A text for the model card. `notes`: what there is to know about the part that is trained."""
    if not options.trained:
        return f"Trained from scratch with vismoe: {network.pretrained_cfg['architecture']}, seed {options.seed}."
    method = "classifier only" if part == "head" else f"{part} trained"
    licence = network.pretrained_cfg.get("license")
    sentences = [
        f"Fine-tuned with vismoe from {_public_name(options.source)} ({method}, seed {options.seed}).",
        f"Its licence: {licence}." if licence else "Its files name no licence: see its source.",
        *(f"{text[0].upper()}{text[1:]}." for text in notes),
    ]
    return " ".join(sentences)


def _public_name(source: str | None) -> str:
    """The name of a source for the public model card: only the last part of a path."""
    return Path(source).name if source is not None and Path(source).exists() else str(source)


def _ending(run: Run, score: str, is_kept: bool) -> str:
    """A line with the last step of the training, and, if its weights are kept at all, the step whose weights are."""
    evaluated = [line for line in run.metrics if score in line]
    last, recipe = evaluated[-1]["step"], run.recipe
    best = max(evaluated, key=lambda line: (line[score], -line["val_loss"]))
    kept = best if recipe.keep == "best" else evaluated[-1]
    early = f" ({recipe.patience} evaluations without a better score)" if last < recipe.steps else ""
    weights = f"; the weights of step {kept['step']} are kept" if is_kept else ""
    return f"training ended after step {last} of {recipe.steps}{early}{weights}"
