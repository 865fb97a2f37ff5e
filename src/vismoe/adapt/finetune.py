"""From a folder of pictures and a trained network to a classifier of one's own."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vismoe.data import Data, shrunk
from vismoe.data import tell as tell_summary
from vismoe.moe import MoE
from vismoe.training import Recipe, Run, Status, TrainingStoppedError, data_config, evaluate, fit, resolve_device
from vismoe.training.beginning import begin
from vismoe.training.checkpoint import newest_checkpoint
from vismoe.training.report import write_report
from vismoe.training.run import ASKED, CHECKPOINTS, INITIAL, MODEL, SPLIT
from vismoe.vit import PRESETS, upcycle
from vismoe.weights import MULTI_LABEL, load_network, save

from .features import classifiers, features
from .freezing import Trained, freeze
from .outcome import write_outcome
from .parts import Parts, open_parts
from .probe import linear_probe
from .rules import Products, choose, kept_side
from .start import open_start

REPORT = "report.json"
SHARES = {"all": 1.0, "last-third": 1 / 3, "experts": 1 / 3, "head": 0.0}
"""Of the blocks that backward passes through."""


@dataclass(frozen=True)
class Options:
    """What an adaptation is asked to be; on one kind of device it decides the result."""

    data: str
    """Folder of class folders, or with a metadata.csv; a zip of one; "digits" or "fashion-mnist"."""
    source: str | None = None
    """A run or model folder, timm:NAME, hf:ORG/NAME; a preset, with random weights; None: a small one of these."""
    sparse: bool = True
    """A dense network is upcycled; without a source, a sparse preset is trained."""
    train: Trained | Literal["auto"] = "auto"
    """What is trained; auto: from scratch all, of a trained network the last third on a CPU, all elsewhere."""
    freeze_router: bool = False
    """Routers, and their balancing, stay as they are."""
    num_experts: int = 8
    """Of each layer that is upcycled."""
    layers: str = "last-2"
    """Which blocks are upcycled: last-N (of the odd blocks), every-N."""
    experts: Literal["full", "low-rank"] = "full"
    """Copies of the network's MLP, or its MLP frozen and low-rank differences."""
    image_size: int | None = None
    """Pixels; by default up to 112 on a CPU, 224 elsewhere, and the network's own."""
    epochs: int | None = None
    """Times that each picture is trained on, at most; by default what minutes allow."""
    batch_size: int | None = None
    """Images of a step; 32 for a trained network, 64 from scratch."""
    learning_rate: float | None = None
    """Peak rate; 2e-4 for a trained network, 2e-3 from scratch."""
    class_weights: float = 0.0
    """How much more rare classes count in the loss: (mean class size ÷ their size) to this power."""
    dtype: Products | Literal["auto"] = "auto"
    """Of products while training; auto: bfloat16 where the device multiplies it natively, which is twice as fast."""
    seed: int = 0
    """Of the split, of new weights, order and augmentation."""

    @property
    def trained(self) -> bool:
        """Whether it starts from weights that know something."""
        return self.source is not None and self.source not in PRESETS


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

    The set is looked at and split so that no picture has a copy, exact or near, in another part. A trained network's
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
    path = Path(out) if out is not None else _free(options)
    _check(options, path)
    parts = open_parts(options.data, options.seed, max_unreadable, workers)
    tell(tell_summary(parts.summary))
    tell(parts.told)
    how: Trained = options.train if options.train != "auto" else "all"
    if options.train == "auto" and options.trained and where.type == "cpu":
        how = "last-third"

    start, probe = _start(options, parts, path, where, workers)
    if probe is not None:
        tell(f"a linear classifier on the frozen network: {probe['validation']:.4f} on the validation part")
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
    run = _head_alone(recipe, path, parts, start) if how == "head" else _fit(recipe, path, parts, start, watch)
    _write_split(run, parts)
    network = run.load_model()
    if probe is not None and parts.validated and run.summary[parts.score] < probe["validation"]:
        tell(f"training made it no better ({run.summary[parts.score]:.4f}): the linear classifier is kept")
        network = load_network(path / INITIAL)
    report = write_outcome(run, network, parts, probe, _origin(options, how, start), workers)
    report["minutes"] = round((time.monotonic() - began) / 60, 2)
    run.write(REPORT, report)
    return Finetuned(run, report)


def _free(options: Options) -> Path:
    path, number = Path("runs/finetune"), 2
    while path.exists() and not (_asked(path) == asdict(options) and not (path / REPORT).exists()):
        path, number = Path(f"runs/finetune-{number}"), number + 1
    return path


def _asked(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((path / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _check(options: Options, path: Path) -> None:
    """Raises FileExistsError for a folder that is neither free nor an unfinished run of the same options."""
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        asked = _asked(path)
        if asked is None:
            raise FileExistsError(f"{path} exists and is no run of finetune: choose another --out, or remove it")
        ours = asdict(options)
        if other := [name for name in ours if asked.get(name) != ours[name]]:
            told = ", ".join(f"{name}={asked.get(name)} there, {ours[name]} here" for name in other)
            raise FileExistsError(f"{path} was begun with other options ({told}): choose another --out")
        if (path / REPORT).exists():
            raise FileExistsError(f"{path} is finished: choose another --out, or remove it")


def _claim(options: Options, path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    aside = path / f".{ASKED}"
    aside.write_text(json.dumps(asdict(options), indent=2) + "\n", encoding="utf-8")
    aside.replace(path / ASKED)


def _start(
    options: Options, parts: Parts, path: Path, device: torch.device, workers: int
) -> tuple[Any, dict[str, float] | None]:
    """The network to train and how its head alone does on validation and test part, where it knows something; made once
    a run."""
    data, kept = parts.fitting, path / INITIAL
    if (kept / "config.json").exists():
        start: Any = load_network(kept)
    else:
        torch.manual_seed(options.seed)
        start = open_start(options.source, options.sparse, len(data.classes), options.image_size, device)
        sparse = any(isinstance(module, MoE) for module in start.modules())
        if sparse and not options.sparse:
            raise ValueError(f"{options.source} is sparse: `vismoe densify` makes a dense model of it")
        if options.trained:
            _fit_head(start.to(device), parts, workers)
        if options.sparse and not sparse:
            start = _upcycled(start, options)
        _claim(options, path)
        kind = MULTI_LABEL if data.multi_label else None
        save(start.cpu(), kept, data.classes, data_config(start), kind)
    if not options.trained:
        return start, None
    found = [evaluate(start.to(device), part, workers=workers).score for part in (data.val, parts.test.val)]
    return start, {"validation": found[0], "test": found[1]}


def _upcycled(model: nn.Module, options: Options) -> nn.Module:
    try:
        return upcycle(
            model, options.num_experts, options.layers, experts=options.experts, seed=options.seed, inplace=True
        )
    except ValueError as error:
        raise ValueError(f"{options.source} cannot be made sparse ({error}): --dense trains it as it is") from error


@torch.no_grad()
def _fit_head(model: nn.Module, parts: Parts, workers: int) -> None:
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise ValueError(f"the classifier of {type(model).__name__} is no one linear layer, which could be fitted")
    train = parts.fitting.parts[0]
    weight, bias = linear_probe(features(model, train, workers=workers), train.labels)
    heads[0].weight.copy_(weight)
    if heads[0].bias is not None:
        heads[0].bias.copy_(bias)


def _fit(recipe: Recipe, path: Path, parts: Parts, start: nn.Module, watch: Callable[[Status], None] | None) -> Run:
    try:
        return fit(recipe, path, watch, resume=True, data=_kept_small(parts.fitting, start), network=lambda: start)
    except TrainingStoppedError as error:
        found = newest_checkpoint(path / CHECKPOINTS, lambda text: None)
        if found is not None:
            state = {name[6:]: tensor for name, tensor in found[0].items() if name.startswith("model.")}
            start.load_state_dict(state)
            data = parts.fitting
            save(start, path / MODEL, data.classes, data_config(start), MULTI_LABEL if data.multi_label else None)
        raise TrainingStoppedError(
            error.signal, f"{error}; the model as it is now is in {path}, the same command again goes on"
        ) from error


def _kept_small(data: Data, model: nn.Module) -> Data:
    """The set with its training pictures kept in memory, where that is large enough."""
    train = data.parts[0]
    side = kept_side(train, max(data_config(model)["input_size"][1:]))
    return data if side is None else replace(data, train=shrunk(train, side))


def _head_alone(recipe: Recipe, path: Path, parts: Parts, start: nn.Module) -> Run:
    """A run of no step: the head was fitted already."""
    run, data = Run.create(path, recipe, parts.fitting), parts.fitting
    state, evaluation = begin(start, recipe), evaluate(start, data.val)
    run.log({"step": 0} | evaluation.logged)
    save(start, run.path / MODEL, data.classes, data_config(start), MULTI_LABEL if data.multi_label else None)
    write_report(run, state, data, evaluation)
    return run


def _write_split(run: Run, parts: Parts) -> None:
    run.write(SPLIT, {"test": [file for file, part in parts.rows if part == "test"], "files": dict(parts.rows)})


def _origin(options: Options, how: str, start: Any) -> str:
    if not options.trained:
        return f"Trained from scratch with vismoe: {start.pretrained_cfg['architecture']}, seed {options.seed}."
    licence = start.pretrained_cfg.get("license")
    return f"Fine-tuned with vismoe from {options.source} ({how} trained, seed {options.seed}). " + (
        f"Its licence: {licence}." if licence else "Its licence is not in its files: look where it is from."
    )
