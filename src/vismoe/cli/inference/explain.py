"""vismoe explain"""

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from torch import Tensor

from vismoe.adapt import run_splits, split_of_files
from vismoe.data import NAMED, Data, Sample, check_images
from vismoe.data.images import IMAGE_SUFFIXES
from vismoe.explain import analyse_set, compare_networks, has_capacity, optimized_copy, without_each_expert
from vismoe.explain.report import CAPACITIES, Page, add_comparison, add_image, add_set, add_without
from vismoe.features import open_images
from vismoe.files import counted, whole_folder
from vismoe.inference import Predictor, open_inputs
from vismoe.moe.record import layers_of
from vismoe.parallel import resolve_device
from vismoe.training import Recipe, Run
from vismoe.weights.sources import short_source

from ..shared.data import open_set, own_run
from ..shared.model import open_model
from ..shared.notes import note, note_set, note_step, refuse_existing
from ..shared.progress import ImageProgress
from ..shared.values import check_at_least

MOST_IMAGES = 1000


def explain(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    inputs: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE…|DATA]")],
    /,
    out: Path,
    capacity: tuple[float, ...] = CAPACITIES,
    compare: str | None = None,
    without_experts: bool = False,
    max_images: int = MOST_IMAGES,
    json: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
) -> None:
    """Show what the experts do, of single images or of a data set: a folder with an HTML report, figures and tables.

    Example: vismoe explain runs/demo digits --out explained

    Args:
        model: Run folder, model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        inputs: Image files; or one data set: digits, fashion-mnist, a folder (or zip) of images or of class folders, or
            a run folder for its data set. Default: the data set of the run that MODEL is.
        out: New folder for the report.
        capacity: Capacity factors that are compared, for images.
        compare: A second model with the same classes, such as the dense twin. Default: the dense twin that
            `vismoe demo` leaves in a run folder, if there is one.
        without_experts: Also measure the score without each expert, on 200 images of a labelled data set.
        max_images: Number of images of a data set; of more, evenly spaced ones are taken.
        json: Print the analysis of a data set as one JSON object; not for images.
        device: Device: auto, cpu, cuda or mps.
        batch_size: Images per forward pass; default: 64, for detectors 16.
    """
    check_at_least(1, max_images=max_images, batch_size=1 if batch_size is None else batch_size)
    refuse_existing(out)
    images = _image_files(inputs)
    if not inputs:
        _check_own_data(model)
    options = {
        "--json": json,
        "--without-experts": without_experts,
        "--max-images": max_images != MOST_IMAGES,
    }
    if images and (given := [name for name, is_given in options.items() if is_given]):
        raise ValueError(f"{given[0]} is for a data set, and image files are given")
    if not images and capacity != CAPACITIES:
        raise ValueError("--capacity is for images, and a data set is given: it is run with the model's own capacity")
    _check_capacity(capacity)
    twin = compare if compare is not None else _known_twin(model)
    names = [model] if twin is None else [model, twin]
    classes = 10 if inputs and inputs[0] in NAMED else None  # of a preset, whose classes are not given
    predictors = [_open(name, classes, device, batch_size) for name in names]
    if not layers_of(predictors[0].model):
        _note_dense(model, bool(images), twin is not None, without_experts)
    with whole_folder(out) as folder:
        page = Page(folder, f"What the experts of {short_source(model)} do")
        if images:
            _explain_images(page, predictors, names, images, capacity)
        else:
            data = inputs[0] if inputs else None
            _explain_set(page, predictors, names, data, without_experts, max_images, json)
        page.write()
    print(f"report: {out / 'index.html'}", file=sys.stderr)


def _image_files(inputs: Sequence[str]) -> list[Path]:
    """The image files that are named; none if a data set is.

    **Raises:** FileNotFoundError for a missing image; ValueError for both, and for several data sets.
    """
    images = [Path(each) for each in inputs if Path(each).is_file() and not each.endswith(".zip")]
    missing = [each for each in inputs if not Path(each).exists() and each not in NAMED]
    if missing and (len(inputs) > 1 or Path(missing[0]).suffix.lower() in IMAGE_SUFFIXES):
        raise FileNotFoundError(f"{missing[0]}: no such image")
    if images and len(images) < len(inputs):
        other = next(each for each in inputs if Path(each) not in images)
        raise ValueError(f"{other} is not an image file: name either image files or one data set")
    if not images and len(inputs) > 1:
        raise ValueError(f"{inputs[1]} is a second data set: name image files, or one data set")
    return images


def _check_own_data(model: str) -> None:
    """Checks that the data set of the run that MODEL is can be opened, before the model is.

    **Raises:** ValueError for an image in MODEL's place, and for a model that is not a run; FileNotFoundError if the
    data set is not there.
    """
    if Path(model).suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{model} is an image, not a model: vismoe explain MODEL {model} --out DIR")
    run = Run.of(model)
    if run is None:
        raise ValueError(f"no data set given: {model} is not a run folder: name images or a data set after it")
    data = run.recipe.data
    if data not in NAMED and not Path(data).exists():
        raise FileNotFoundError(
            f"{model} was trained on {data!r}, which is not found from here ({Path.cwd()}): name the data set's folder "
            f"as the second argument: vismoe explain {model} FOLDER --out DIR"
        )


def _note_dense(name: str, has_images: bool, is_compared: bool, without_experts: bool) -> None:
    """Says what is left to show of a network without sparse layers.

    **Raises:** ValueError if that is nothing.
    """
    if without_experts:
        raise ValueError(f"--without-experts: {name} has no sparse layers, so no expert can be left out")
    if not (has_images or is_compared):
        raise ValueError(
            f"{name} has no sparse layers, so there are no experts to show: name images, for attention rollout and the "
            "parts of patches in the answer, or a second network, with --compare"
        )
    left = ["the answers, attention rollout and the parts of patches"] * has_images + ["the comparison"] * is_compared
    note(f"{name} has no sparse layers: the report shows {' and '.join(left)}")


def _open(name: str, classes: int | None, device: str, batch_size: int | None) -> Predictor:
    # Not optimized: packed weights can be neither counted nor given hooks.
    network = open_model(name, classes).to(resolve_device(device))
    predictor = Predictor(network, batch_size=batch_size, optimized=False)
    predictor.task.check_model(predictor.model)
    return predictor


def _known_twin(model: str) -> str | None:
    run = Run.of(model)
    twin = None if run is None else run.path / "dense"
    if twin is None or not twin.is_dir():
        return None
    note(f"compared with its dense twin, {twin}")
    return str(twin)


def _check_capacity(capacities: Sequence[float]) -> None:
    if wrong := [each for each in capacities if not 0 < each < float("inf")]:
        raise ValueError(f"capacity={wrong[0]:g}: accepted are positive numbers")
    if not capacities:
        raise ValueError("no capacity given: name at least one, such as --capacity 0.5")


def _explain_images(
    page: Page, predictors: list[Predictor], names: list[str], images: list[Path], capacities: Sequence[float]
) -> None:
    predictor = predictors[0]
    optimized = optimized_copy(predictor)
    if not has_capacity(predictor.model):
        if capacities != CAPACITIES:
            raise ValueError(f"--capacity: {names[0]} has no sparse layer with a capacity")
        if layers_of(predictor.model):
            note(f"{names[0]} has no layer with a capacity, so none is compared")
    opened: list[tuple[str, Sample]] = []
    for number, (title, sample) in enumerate(open_inputs(images, predictor.task.read), start=1):
        title = Path(title).name
        add_image(page, predictor, sample, title, number, capacities, optimized)
        if len(predictors) == 2:
            opened.append((title, sample))
    if len(predictors) == 2:
        decoded, titles = [sample["image"] for _, sample in opened], [title for title, _ in opened]
        pair = (predictors[0], predictors[1])
        add_comparison(page, compare_networks(pair, _titles(names), decoded, titles))


def _explain_set(
    page: Page,
    predictors: list[Predictor],
    names: list[str],
    data: str | None,
    without_experts: bool,
    max_images: int,
    json: bool,
) -> None:
    predictor, (name, *_) = predictors[0], names
    opened, is_own = _opened(name, data, predictor)
    note_set(opened, predictor.model, is_own)
    images, total = opened.val, len(opened.val)
    if total > max_images:
        images = images.subset([number * total // max_images for number in range(max_images)])
        note(f"{max_images:,} of {total:,} images are analysed (--max-images)")
    note_step(f"analysing {counted(len(images), 'image')}")
    with ImageProgress("images") as progress:
        analysis = analyse_set(predictor, images, opened.classes, watch=progress)
    shown = Path(opened.name).name  # the report says nothing of the folders of this machine
    if len(images) < total:
        shown = f"{len(images):,} of {total:,} images of {shown}"
    add_set(page, analysis, shown)
    if without_experts:
        note_step("measuring the score without each expert")
        with ImageProgress("without each expert", "experts") as progress:
            score, rows = without_each_expert(predictor, images, watch=progress)
        add_without(page, score, rows, predictor.task.metric, min(len(images), 200))
    if len(predictors) == 2:
        note_step(f"comparing with {names[1]}")
        titles = list(images.files) or [f"image {number}" for number in range(len(images))]
        labels = [_class_names(label, opened.classes) for label in images.labels]
        pair = (predictors[0], predictors[1])
        add_comparison(page, compare_networks(pair, _titles(names), _Images(images), titles, labels))
    if json:
        print(json_format.dumps(analysis.to_json()))


def _titles(names: Sequence[str]) -> tuple[str, str]:
    """The names of two models in the report, without the folders of this machine unless they tell them apart."""
    first, second = (short_source(name) for name in names)
    return (first, second) if first != second else (names[0], names[1])


class _Images(Sequence[Image.Image]):
    """The images of a set, decoded one by one."""

    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Any) -> Any:
        return self.images.image(place)


def _class_names(label: Tensor, classes: Sequence[str]) -> str:
    numbers = label.nonzero()[:, 0].tolist() if label.ndim else [int(label)]
    return ", ".join(classes[number] for number in numbers)


def _opened(model: str, data: str | None, predictor: Predictor) -> tuple[Data, bool]:
    """The data set, and whether it is the one of a run, with the run's splits. A folder that holds nothing but image
    files has no classes."""
    folder, run, is_own = None if data is None else Path(data), Run.of(model), False
    if folder is not None and folder.is_dir() and Run.of(folder) is None and _is_flat(folder):
        opened = open_images([folder])
    elif own_run(model, data) is not None:
        opened, is_own = open_set(model, data, task=predictor.task), True
    elif run is not None and folder is not None and (moved := _moved_set(run, folder)) is not None:
        opened, is_own = moved, True
        note(f"{data} has the images of the data set of {model}: those that the run did not train on are analysed")
    else:
        opened = open_set(model, data, task=predictor.task)
        if run is not None:
            _note_trained(model, run, opened)
    opened = opened if not opened.classes else predictor.task.align_classes(opened)
    return check_images(replace(opened, train=None), 1.0, 0), is_own


@dataclass(frozen=True)
class _MovedRun(Run):
    """A run whose data set is now in another folder."""

    data_folder: str = ""

    @property
    def recipe(self) -> Recipe:
        return replace(super().recipe, data=self.data_folder)


def _moved_set(run: Run, folder: Path) -> Data | None:
    """The data set of a run, with its splits, if the folder has it: the same classes and files; otherwise None."""
    moved = _MovedRun(run.path, data_folder=str(folder))
    try:
        files, data = split_of_files(moved), run_splits(moved)
    except (OSError, ValueError):
        return None
    own = {file for images in (data.train, data.val) if images is not None for file in images.files}
    return data if data.classes == run.data["classes"] and own >= files.keys() else None


def _note_trained(model: str, run: Run, data: Data) -> None:
    """Says if images of a data set may be training images of the run that the model comes from."""
    try:
        sides = split_of_files(run)
    except (OSError, ValueError):  # its data set was moved or changed, or it is not finished
        note(f"the training images of {model} are not known: they may be among these images")
        return
    trained = sum(sides.get(file) in ("train", "validation") for file in data.val.files)
    if trained:
        note(f"{trained:,} of these {len(data.val):,} images have names of training images of {model}")


def _is_flat(folder: Path) -> bool:
    entries = [each for each in folder.iterdir() if not each.name.startswith(".")]
    return bool(entries) and all(each.is_file() and each.suffix.lower() in IMAGE_SUFFIXES for each in entries)


def main(arguments: list[str]) -> None:
    tyro.cli(explain, args=arguments, prog="vismoe explain")
