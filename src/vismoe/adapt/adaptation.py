"""One fine-tuning from a set to a report: what is the same for every task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from vismoe.data import Data, check_batch_size, format_group_column, format_name_groups, format_summary
from vismoe.parallel import Mesh, raising, resolve_device, signal_name
from vismoe.tasks import AUTO, task_for
from vismoe.training import Recipe, Run, Status, TrainingStoppedError, fit
from vismoe.training.checkpointer import Checkpointer
from vismoe.training.run import CHECKPOINTS, INITIAL, MODEL, SPLIT
from vismoe.weights import load_network

from .experts import is_sparse
from .options import Options, Trained
from .reserve_run import withdraw
from .splits import Splits
from .unfinished import evaluated_weights

Log = Callable[[str], None]
R = TypeVar("R")


class Adaptation(ABC):
    """One fine-tuning from a set to a report. Each phase uses the results of those before it. If there are several
    processes, each runs all phases, and only the main process logs and writes.

    **Arguments:**

    - `options`: the options.
    - `path`: the run folder.
    - `engine`: fields of the recipe that do not change the result: device, workers, max_unreadable, expert_parallel.
    - `splits`: the splits of the set.
    - `parent`: the run on the same set from which the network comes; None: there is none.
    - `log`: called with each line about the set and the choices.
    - `mesh`: the processes.
    - `started`: time.monotonic() when it began, in seconds.
    """

    network: nn.Module
    part: Trained
    recipe: Recipe
    is_resumed: bool
    unfinished = "not tested"
    """What a model that is written when the training is stopped lacks."""

    def __init__(
        self,
        options: Options,
        path: Path,
        engine: dict[str, Any],
        splits: Splits,
        parent: Run | None,
        log: Log,
        mesh: Mesh,
        started: float,
    ):
        self.options, self.path, self.engine, self.splits, self.parent = options, path, engine, splits, parent
        self.log: Log = log if mesh.is_main else lambda text: None
        self.mesh, self.workers = mesh, int(engine["workers"])
        self.device = mesh.device(resolve_device(engine["device"]))
        self.started = started

    @property
    @abstractmethod
    def advice(self) -> str:
        """What is said if no trained network is given."""

    @abstractmethod
    def build(self) -> None:
        """Makes the initial network."""

    @abstractmethod
    def choose_part(self) -> Trained:
        """Chooses which weights are trained, and freezes the others."""

    @abstractmethod
    def choose_recipe(self) -> Recipe:
        """The recipe that the rules choose. Logs the reasons."""

    @property
    def has_training(self) -> bool:
        """Whether weights are trained in steps."""
        return True

    @abstractmethod
    def data_of_training(self) -> Data:
        """The training and validation split in the form that is trained on."""

    @abstractmethod
    def result(self, report: dict[str, Any]) -> list[str]:
        """The result on the test split as lines of text."""

    @abstractmethod
    def report(self, run: Run) -> dict[str, Any]:
        """What `test` does, without its signals."""

    def on_main_first(self, make: Callable[[], R]) -> R:
        """What `make` returns in this process. The main process calls it first, so that the others can load what it has
        written."""
        made: list[R] = []
        self.mesh.run_on_main(lambda: made.append(make()))
        return made[0] if made else make()

    def describe_network(self) -> None:
        """Logs whether the network is sparse, and how to get the other kind."""
        if not is_sparse(self.network):
            self.log("the network is dense; --sparse replaces some of its MLPs by experts")
        elif self.options.source is None:
            self.log("the network is sparse; --dense trains one without experts")

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
            self.log(self.advice)
        if self.options.freeze_router and not self.options.trained:
            self.log("warning: --freeze-router without a trained network: the routers keep their random weights")

    def plan(self) -> None:
        """Chooses the recipe. A resumed run keeps its recipe, because the rules may have changed since."""
        try:
            self.part = self.choose_part()
            saved_recipe = self.mesh.run_on_main(
                lambda: Run(self.path).recipe if Run.of(self.path) == Run(self.path) else None
            )
            self.is_resumed = saved_recipe is not None
            recipe = self._of_options(self.choose_recipe()) if saved_recipe is None else saved_recipe
            if self.has_training:
                check_batch_size(recipe.batch_size, self.mesh.size)
        except ValueError:
            if self.mesh.is_main:
                withdraw(self.path)
            raise
        self.recipe = replace(recipe, **self.engine)
        if not self.has_training and self.recipe.expert_parallel > 1:
            self.log("note: only the head is fitted, by one process: expert_parallel has no effect")
        if self.has_training and (shortage := recipe.shortage(images := len(self.splits.fitting.train_and_val[0]))):
            # The fewest epochs that are enough steps, as an epoch's last batch is not always full.
            epochs = (recipe.enough_steps(images) - 1) * recipe.batch_size // images + 1
            self.log(f"warning: {shortage}: use --epochs {epochs} or more")

    def _of_options(self, recipe: Recipe) -> Recipe:
        """The recipe with what the options say of the run."""
        options = self.options
        selection: dict[str, Any] = {} if self.splits.validated else {"keep": "last", "patience": 0}
        return replace(
            recipe,
            model=options.source or cast(Any, self.network).pretrained_cfg["architecture"],
            split_seed=options.seed,
            seed=options.seed,
            group_column=options.group_column,
            **selection,
        )

    def train(self, on_status: Callable[[Status], None] | None) -> Run:
        """Trains or resumes, and writes the split of each file into the run folder."""
        run = self.make_run(on_status)
        if self.mesh.is_main:
            rows = self.splits.rows
            run.write(SPLIT, {"test": [file for file, part in rows if part == "test"], "files": dict(rows)})
        return run

    def make_run(self, on_status: Callable[[Status], None] | None) -> Run:
        """Trains or resumes."""
        path, network = self.path, self.network
        if self.mesh.is_main and (saved := Checkpointer(path / CHECKPOINTS, warn=self.log).newest()):
            self.log(f"resuming after step {saved['step']}")
        data = self.data_of_training()
        try:
            return fit(self.recipe, path, on_status, resume=True, data=data, network=lambda: network)
        except TrainingStoppedError as error:
            if self.mesh.is_main and (saved := Checkpointer(path / CHECKPOINTS).newest()) is not None:
                network = load_network(path / INITIAL)  # the one in training may be distributed
                network.load_state_dict(evaluated_weights(saved))
                task_for(AUTO, data, self.recipe.to_json()).save(network, path / MODEL)
            raise self._stopped(error.signal, "stopped", "the model at this step") from error

    def test(self, run: Run) -> dict[str, Any]:
        """Evaluates the network on the test split, and writes the report.

        **Raises:** TrainingStoppedError at once after SIGTERM or SIGINT.
        """
        what = "stopped before the test split was evaluated"
        with raising(lambda number: self._stopped(number, what, "the trained model")):
            return self.report(run)

    def _stopped(self, number: int, what: str, model: str) -> TrainingStoppedError:
        text = f"{what}; {self.path / MODEL} is {model}, {self.unfinished}; give the same command again to continue"
        return TrainingStoppedError(number, f"{signal_name(number)}: {text}")


def origin_of(options: Options, part: Trained, network: Any, notes: Sequence[str]) -> str:
    """A text for the model card. `notes`: what there is to know about the part that is trained."""
    if not options.trained:
        return f"Trained from scratch with vismoe: {network.pretrained_cfg['architecture']}, seed {options.seed}."
    method = "classifier only" if part == "head" else f"{part} trained"
    licence = network.pretrained_cfg.get("license")
    sentences = [
        f"Fine-tuned with vismoe from {public_name(options.source)} ({method}, seed {options.seed}).",
        f"Its licence: {licence}." if licence else "Its files name no licence: see its source.",
        *(f"{text[0].upper()}{text[1:]}." for text in notes),
    ]
    return " ".join(sentences)


def public_name(source: str | None) -> str:
    """The name of a source for the public model card: only the last part of a path."""
    return Path(source).name if source is not None and Path(source).exists() else str(source)


def ending_of(run: Run, score: str, is_kept: bool) -> str:
    """A line with the last step of the training, and, if its weights are kept at all, the step whose weights are."""
    evaluated = [line for line in run.metrics if score in line]
    defined = [line for line in evaluated if line[score] is not None]
    last, recipe = evaluated[-1]["step"], run.recipe
    best = max(defined or evaluated[-1:], key=lambda line: (line[score], -line.get("val_loss", 0)))
    kept = best if recipe.keep == "best" else evaluated[-1]
    early = f" ({recipe.patience} evaluations without a better score)" if last < recipe.steps else ""
    weights = f"; the weights of step {kept['step']} are kept" if is_kept else ""
    return f"training ended after step {last} of {recipe.steps}{early}{weights}"
