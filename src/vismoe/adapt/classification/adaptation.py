"""The fine-tuning of a classifier."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from vismoe.data import MAX_LEVEL, Data, cached_at_scale, cached_images, note_of_levels
from vismoe.explain import routing_images
from vismoe.inference import Predictor, evaluate
from vismoe.tasks import Group, classification_of, group_lines
from vismoe.training import Recipe, Run, Status
from vismoe.training.report import write_report
from vismoe.training.run import CHECKPOINTS, INITIAL, MODEL, SUMMARY
from vismoe.training.state import begin
from vismoe.weights import data_config, load_network

from ..adaptation import Adaptation, ending_of, origin_of
from ..budget import kept_side
from ..experts import is_sparse
from ..freezing import SHARES, choose_trained, experts_are_equal, freeze
from ..options import Trained
from ..reserve_run import REPORT
from ..splits import Splits
from .calibrate import ENOUGH
from .initial_model import initial_model
from .outcome import write_outcome
from .rules import choose

UNTRAINED_EXPERTS = (
    "the experts of this model are not trained: routing.png and a comparison with --dense say nothing about it"
)


class ClassifierAdaptation(Adaptation):
    """The fine-tuning of a classifier: a linear classifier on the frozen network first, then the training."""

    unfinished = "neither tested nor calibrated"

    @property
    def advice(self) -> str:
        return (
            "no --from: a small network is trained from scratch; a trained network is usually much more accurate. "
            "From scratch, compare it with a small convolutional network: "
            f"vismoe train images --data {self.options.data} --model timm:mobilenetv3_small_100"
        )

    def build(self) -> None:
        """Makes the initial network, and evaluates its linear classifier."""
        self.network, self.probe = self.on_main_first(
            lambda: initial_model(self.options, self.splits, self.path, self.device, self.workers, self.log)
        )
        if text := note_of_levels(self.splits.test, data_config(self.network).get("max_level")):
            self.log(f"note: {text}")
        self.describe_network()
        if self.probe is not None and self.splits.validated:
            score = self.probe["validation"]
            self.log(f"a linear classifier on the frozen network: {score:.4f} on the validation split")

    def choose_part(self) -> Trained:
        """Chooses which weights are trained: only the classifier, if the linear classifier makes no error on the
        validation split."""
        is_enough = self.options.train == "auto" and not self.options.makes_sparse and self._perfect
        part: Trained = "head" if is_enough else choose_trained(self.options, self.network, self.device)
        freeze(self.network, part, not self.options.freeze_router)
        if is_enough:
            self.log(
                "the linear classifier makes no error on the validation split, so no improvement can be measured: "
                "it is kept without further training; --train last-third or --train all trains anyway"
            )
        return part

    @property
    def has_training(self) -> bool:
        return self.part != "head"

    @property
    def _perfect(self) -> bool:
        """Whether the linear classifier makes no error on the validation split, so that no improvement can be
        measured."""
        enough = self.splits.validated and len(self.splits.fitting.val) >= ENOUGH
        return enough and self.probe is not None and self.probe["validation"] == 1.0

    def choose_recipe(self) -> Recipe:
        """The recipe that the rules choose. Logs the reasons."""
        choice = choose(self.options, self.network, self.splits, self.device, SHARES[self.part], self.mesh.size)
        choice = self.mesh.run_on_main(lambda: choice)  # other processes may see another amount of free memory
        if self.has_training:
            self.log(f"training {self.part}: {'; '.join(choice.reasons)}")
        return choice.recipe

    def data_of_training(self) -> Data:
        """The set with its images cached in memory at the required size, if there is enough memory."""
        data, config = self.splits.fitting, data_config(self.network)
        train = data.train_and_val[0]
        side = kept_side(train, max(config["input_size"][1:]))
        if side is None:
            return data
        return replace(
            data,
            train=cached_images(train, side, config.get("max_level", MAX_LEVEL)),
            val=cached_at_scale(data.val, config),
        )

    def make_run(self, on_status: Callable[[Status], None] | None) -> Run:
        """Trains or resumes, or, if only the classifier is trained, writes the run as it is."""
        run: Run = super().make_run(on_status) if self.has_training else self.mesh.run_on_main(self._write_untrained)
        return run

    def _write_untrained(self) -> Run:
        """Writes a run without training steps, because the head is fitted already."""
        data, network, path = self.splits.fitting, self.network, self.path
        run = Run.reopen(path, self.recipe, data) if Run.of(path) == Run(path) else Run.create(path, self.recipe, data)
        run.truncate_metrics(-1)
        task = classification_of(data)
        state, evaluation = begin(network, self.recipe), evaluate(network, data.val, task=task)
        run.log({"step": 0} | evaluation.logged)
        task.save(network, run.path / MODEL)
        write_report(run, state, task, data, evaluation)
        return run

    def result(self, report: dict[str, Any]) -> list[str]:
        name, test, (low, high) = report["score"], report["test"], report["interval"]
        lines = [
            f"test split: {name.replace('_', ' ')} {test[name]:.4f}, right on {report['right']} of "
            f"{report['images']['test']} (95 % interval {low:.4f} to {high:.4f}), "
            f"calibration error {test['calibration_error']:.4f}"
        ]
        if report["groups"]:
            lines += group_lines(report["group_column"], [Group(**group) for group in report["groups"]])
        return lines

    def report(self, run: Run) -> dict[str, Any]:
        """Chooses between the trained network and its linear classifier, evaluates it on the test split, and writes
        the report."""
        network, kept, notes = run.load_model(), self.part, []
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
        if self.has_training:
            self.log(ending_of(run, self.splits.score, is_kept=kept != "head"))
        for text in notes:
            self.log(text)
        origin = origin_of(self.options, kept, self.network, notes)
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
        if not is_sparse(network):
            return ""
        before = "network before training, kept with its linear classifier" if self.has_training else ""
        untrained = "its experts are not trained" if experts_are_equal(network) else ""
        return "; ".join(filter(None, (before, untrained)))


def _write_summary_of_kept(run: Run, network: nn.Module, splits: Splits, workers: int) -> None:
    """Writes a linear probe's evaluation into the summary; "dropped" has the metrics of the trained network."""
    evaluation = evaluate(network, splits.fitting.val, workers=workers, task=classification_of(splits.fitting))
    dropped = {name: run.summary.get(name) for name in evaluation.logged}
    figures = {"images_per_second": evaluation.images_per_second, "load": evaluation.load}
    figures["weakness"] = evaluation.weakness
    run.write(SUMMARY, {**run.summary, **evaluation.logged, **figures, "dropped": dropped})
