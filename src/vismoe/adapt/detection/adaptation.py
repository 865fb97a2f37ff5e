"""The fine-tuning of a detector."""

import json
import shutil
import time
from dataclasses import replace
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vismoe.data import Data, ImageSet
from vismoe.detection import Detector, make_detector
from vismoe.files import counted
from vismoe.parallel import free_memory
from vismoe.tasks import Detection
from vismoe.training import Recipe, Run, describe
from vismoe.training.run import CHECKPOINTS, INITIAL, digest_of_sizes
from vismoe.weights import create_model, data_config, open_trained, set_max_level

from ..adaptation import Adaptation, ending_of, origin_of
from ..budget import choose_dtype
from ..experts import is_sparse, refuse_other_experts, upcycled
from ..freezing import choose_trained, freeze
from ..initial_model import made_once
from ..options import Options, Trained
from ..reserve_run import REPORT
from .kept import bytes_of_tokens, keep_tokens
from .outcome import result_lines, write_outcome
from .rules import SCRATCH, InputSize, Work, choose_recipe, choose_size

KEPT = "kept"
"""Folder beside the initial model with the tokens of frozen blocks, until the run is finished."""
VIEWS = 4
"""Max number of augmented views of each training image whose tokens are kept."""
ON_CPU: Trained = "last-two"
"""Part of a trained network that is trained on a CPU."""
WINDOWED = 2
"""Number of blocks of a trained network, the last ones, that attend within windows on a CPU."""


class DetectorAdaptation(Adaptation):
    """The fine-tuning of a detector: a network becomes its trunk; the blocks that are not trained run only once."""

    network: Detector
    work: Work

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.splits.validated and not _has_objects(self.splits.fitting.val):
            self.log("note: no validation image has an object: the last weights are kept, and not the best ones")
            self.splits = replace(self.splits, validated=False)

    @property
    def advice(self) -> str:
        return (
            "no --from: a small network is trained from scratch; with few images, a trained network may find more of "
            "the rare classes"
        )

    @property
    def task(self) -> Detection:
        return Detection(self.splits.fitting.classes)

    def build(self) -> None:
        """Makes the initial network.

        **Raises:** ValueError for options that a detector does not have.
        """
        if self.options.class_weights:
            raise ValueError(f"class_weights={self.options.class_weights}: a detector has none; leave them out")
        network = self.on_main_first(lambda: made_once(self.options, self.path, self.task, self._make_network))
        self.network = cast(Detector, network).to(self.device)
        self.describe_network()

    def _make_network(self) -> nn.Module:
        options, network = self.options, self._detector(_trunk(self.options))
        if options.max_level is not None:
            set_max_level(network, options.max_level)
        refuse_other_experts(options, network)
        if not options.makes_sparse or is_sparse(network):
            return network
        depth = len(getattr(network.trunk, "blocks", ()))
        return upcycled(network, options, f"{depth - 2},{depth - 1}")

    def _detector(self, trunk: nn.Module) -> Detector:
        """A detector with this trunk, or, if it is a detector itself, with a head for the classes of the set."""
        classes, options = self.splits.fitting.classes, self.options
        if isinstance(trunk, Detector):
            self._keep_classes(trunk)
            if options.image_size is None:
                self.log(f"input of {trunk.img_size[0]} × {trunk.img_size[1]} pixels, as {options.source}")
            else:
                size = self._size_for(trunk.trunk)
                trunk.set_input_size((size.height, size.width))
            return trunk
        size, windowed = self._size_for(trunk), 0
        trains_blocks = options.train not in ("head", "experts")
        if options.trained and trains_blocks and self.device.type == "cpu" and isinstance(trunk, VisionTransformer):
            windowed = WINDOWED
            self.log(
                f"patches attend only within windows of 8 × 8 patches in the last {windowed} blocks, which is faster"
            )
        source = str(options.source or SCRATCH)
        return make_detector(trunk, len(classes), (size.height, size.width), source, windowed_blocks=windowed)

    def _size_for(self, trunk: nn.Module) -> InputSize:
        """The input size for a trunk. Logs the reason."""
        patch = tuple(getattr(getattr(trunk, "patch_embed", None), "patch_size", (16, 16)))
        size = choose_size(self.options, self.splits, cast(Any, patch), self.device)
        self.log(size.reason)
        return size

    def _keep_classes(self, detector: Detector) -> None:
        """Gives a trained detector a layer for the classes of the set, with the weights of those that it knows."""
        classes, known = self.splits.fitting.classes, list(cast(Any, detector).pretrained_cfg.get("label_names") or ())
        if known == classes:
            return
        old = detector.head.centre
        detector.reset_classifier(len(classes))
        shared = [name for name in classes if name in known]
        with torch.no_grad():
            for name in shared:
                for new, before in zip(detector.head.centre.parameters(), old.parameters(), strict=True):
                    new[classes.index(name)] = before[known.index(name)]
        new_names = ", ".join(name for name in classes if name not in known) or "none"
        known_names = ", ".join(shared) or "none"
        self.log(f"classes of {self.options.source} that are kept: {known_names}; new classes: {new_names}")

    def choose_part(self) -> Trained:
        """Chooses which blocks are trained. Neck and head always are, so there is always a training."""
        part = choose_trained(self.options, self.network, self.device, ON_CPU)
        freeze(self.network, part, not self.options.freeze_router)
        for module in (self.network.neck, self.network.head):
            module.requires_grad_(True)
        return part

    @property
    def _can_keep_tokens(self) -> bool:
        """Whether the blocks before the first trained one can run only once."""
        network, images = self.network, len(self.splits.fitting.train_and_val[0])
        has_stem_detail = network.neck.detail is not None and not network.reads_pixels
        if not isinstance(network.trunk, VisionTransformer) or has_stem_detail:
            return False
        needed = bytes_of_tokens(network, VIEWS * images + len(self.splits.fitting.val))
        space = min(free_memory(torch.device("cpu")) / 4, shutil.disk_usage(self.path).free / 2)
        if first_trained(network) > 0 and needed >= space:
            self.log(
                f"note: the tokens of the blocks that are not trained would need {needed / 2**30:.1f} GiB, and only "
                f"{space / 2**30:.1f} GiB of free memory and disk are for them: these blocks run in every step"
            )
        return first_trained(network) > 0 and needed < space

    def choose_recipe(self) -> Recipe:
        """The recipe that the rules choose. Logs the reasons."""
        dtype, start = choose_dtype(self.options, self.device), first_trained(self.network)
        # Other processes may see another amount of free memory.
        self.work = self.mesh.run_on_main(lambda: Work.of(self.network, start, self._can_keep_tokens))
        recipe, reasons = self.mesh.run_on_main(
            lambda: choose_recipe(
                self.options, self.network, self.splits, self.device, dtype, self.work, self.mesh.size
            )
        )
        blocks = len(getattr(self.network.trunk, "blocks", ()))
        what = f"the last {blocks - start} of {counted(blocks, 'block')}"
        if self.part == "all":
            what = "the whole network"
        elif self.part == "head":
            what = "neck and head"
        elif not 0 < start < blocks:
            what = f"{self.part}, neck and head"
        self.log(f"training {what}: {'; '.join(reasons)}")
        return recipe

    def _keeps_tokens(self) -> bool:
        """Whether tokens are kept: as when the run was started, if it is resumed."""
        return (self.path / INITIAL / KEPT).is_dir() if self.is_resumed else self.work.keeps_tokens

    def data_of_training(self) -> Data:
        """The set with the tokens of the blocks that are not trained, or with its images."""
        data, recipe = self.splits.fitting, self.recipe
        images = len(data.train_and_val[0])
        views = min(VIEWS, recipe.steps * recipe.batch_size // images)
        if not self.mesh.run_on_main(self._keeps_tokens) or views < 2:
            return data
        config = data_config(self.network)
        transforms = (
            self.task.training_transform(config, recipe.augmentation),
            self.task.evaluation_transform(config),
        )
        block = first_trained(self.network)
        frozen = "the first block is not trained: it runs"
        if block > 1:
            frozen = f"the first {block} blocks are not trained: they run"
        self.log(f"{frozen} once, for {views} augmented views of each image, and their tokens are kept")
        folder = self.path / INITIAL / KEPT
        dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
        made_of = [describe(data)["digest"], digest_of_sizes(data), recipe.augmentation, self.network.img_size]
        identity = json.dumps([*made_of, block, views, recipe.seed, recipe.dtype])

        def keep() -> Data:
            folder.mkdir(exist_ok=True)
            return keep_tokens(
                self.network, block, data, transforms, views, recipe.seed, dtype, folder, identity, self.log
            )

        return self.on_main_first(keep)

    def report(self, run: Run) -> dict[str, Any]:
        """Evaluates the network on the test split, and writes the report."""
        network = run.load_model()
        self.log(ending_of(run, self.splits.score, is_kept=True))
        origin = origin_of(self.options, self.part, self.network, [])
        report = write_outcome(run, network, self.splits, origin, self.workers)
        report |= {"trained": self.part, "minutes": round((time.monotonic() - self.started) / 60, 2)}
        run.write(REPORT, report)
        for name in (CHECKPOINTS, INITIAL):  # large, and a finished run does not need them
            shutil.rmtree(self.path / name, ignore_errors=True)
        return report

    def result(self, report: dict[str, Any]) -> list[str]:
        return result_lines(report)


def _has_objects(images: ImageSet) -> bool:
    """Whether an image has an object that counts."""
    return any(bool((~images.further["ignored"](index)).any()) for index in range(len(images)))


def _trunk(options: Options) -> nn.Module:
    """The network that the options name; without one, a small preset."""
    if options.source is None:
        name = f"{SCRATCH}_{'every2_e8' if options.makes_sparse else 'dense'}"
        return create_model(name, num_classes=0, pos_embed="sincos2d")
    return open_trained(options.source) if options.trained else create_model(options.source, num_classes=0)


def first_trained(network: Detector) -> int:
    """The number of the first block with a trained parameter; 0 if something before the blocks is trained too; the
    number of blocks if none is."""
    blocks = list(getattr(network.trunk, "blocks", ()))
    within = {parameter for block in blocks for parameter in block.parameters()}
    after = {parameter for name in ("norm", "fc_norm", "head") for parameter in _parameters(network.trunk, name)}
    if any(parameter.requires_grad for parameter in {*network.trunk.parameters()} - within - after):
        return 0
    trained = [
        number
        for number, block in enumerate(blocks)
        if any(parameter.requires_grad for parameter in block.parameters())
    ]
    # Blocks that attend within windows are not run to make tokens.
    return max(0, min([*trained, len(blocks) - network.windowed_blocks]))


def _parameters(trunk: nn.Module, name: str) -> list[nn.Parameter]:
    module = getattr(trunk, name, None)
    return list(module.parameters()) if isinstance(module, nn.Module) else []
