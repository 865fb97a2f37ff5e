"""vismoe fewshot"""

import json as json_format
import sys
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vismoe.data import check_images
from vismoe.features import check_features, check_shots, few_shot
from vismoe.parallel import resolve_device
from vismoe.training import Run

from ..shared.data import open_set, own_run
from ..shared.model import open_resized
from ..shared.notes import note, note_set
from ..shared.progress import ImageProgress
from ..shared.values import check_at_least


def fewshot(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    data: str | None = None,
    shots: str = "1,5,10,25",
    seeds: int = 3,
    protocol: Literal["validated", "reference"] = "validated",
    max_unreadable: float = 0.1,
    json: bool = False,
    image_size: int | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> None:
    """Evaluate a model's features with a few labelled images per class (few-shot accuracy).

    Two classifiers are fitted on the features of a few training images: least squares in closed form, and 20 nearest
    neighbours. Accuracy is measured on the validation split (for a run of finetune, on its test split). The table has
    its mean and standard deviation over seeds.

    Example: vismoe fewshot runs/demo --data digits --shots 1,5

    Args:
        model: Run folder, model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or preset (random weights).
        data: Data set: digits, fashion-mnist, class folders, images with a metadata.csv, or a run folder for its set.
            Without splits, a random quarter is the validation split. Default: the run's own data set and splits.
        shots: Numbers of training images per class, comma-separated; those too large for a class are left out.
            Up to 25 further images per class select the regularisation.
        seeds: Number of seeds; each draws other training images.
        protocol: How the regularisation is selected. validated: on the further images.
            reference: on the evaluated images, as in google-research/vmoe, to compare with published accuracies.
        max_unreadable: Largest fraction of unreadable files, 0 to 1; they are listed and left out.
        json: Print one JSON object; accuracies are between 0 and 1.
        image_size: Image size in pixels, a multiple of the patch size; default: the model's.
            Time grows with the square of the size.
        device: Device: auto, cpu, cuda or mps.
        batch_size: Images per forward pass.
        workers: Number of data loading worker processes; 0: the main process.
    """
    check_at_least(1, batch_size=batch_size, seeds=seeds)
    check_at_least(0, workers=workers)
    requested_shots = _numbers(shots)
    run, run_of_set = Run.of(model), own_run(model, data)
    data = data or (run_of_set.recipe.data if run_of_set is not None else "")
    network = open_resized(model, image_size).to(resolve_device(device))
    check_features(network)  # before images are decoded
    opened = open_set(model, data, 0 if run is None else run.recipe.split_seed, workers=workers)
    opened = check_images(opened, max_unreadable, workers)
    note_set(opened, network, run_of_set is not None)
    possible = check_shots(opened, requested_shots, protocol)
    for number in sorted(set(requested_shots) - set(possible)):
        note(f"{number} shots are left out: some class of {data} has too few training images")
    with ImageProgress("features") as progress:
        results = few_shot(network, opened, possible, seeds, batch_size, workers, progress, protocol)
    rows = [
        {
            "shots": result.shots,
            "l2": result.l2,
            "closed_form": _figures(result.closed_form),
            "neighbours": _figures(result.neighbours),
        }
        for result in results
    ]
    if json:
        header = {"model": model, "data": data, "images": len(opened.val), "seeds": seeds, "protocol": protocol}
        print(json_format.dumps(header | {"rows": rows}))
        return
    is_test = opened.val_is_test or (run_of_set is not None and run_of_set.test_files is not None)
    set_title = "images of the test split" if is_test else "validation images"
    title = f"accuracy on {len(opened.val):,} {set_title}, mean ± standard deviation over {seeds} seeds"
    table = Table("shots", "closed form", "its l2", "20 nearest neighbours", title=title)
    for row in rows:
        table.add_row(
            str(row["shots"]),
            _mean_and_deviation(row["closed_form"]),
            f"{row['l2']:.4g}",
            _mean_and_deviation(row["neighbours"]),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ValueError(f"shots={text!r}: expected comma-separated integers, such as 1,5,10") from error


def _figures(accuracies: list[float]) -> dict[str, Any]:
    deviation = stdev(accuracies) if len(accuracies) > 1 else None
    return {"mean": mean(accuracies), "standard_deviation": deviation, "each": accuracies}


def _mean_and_deviation(figures: Any) -> str:
    deviation = figures["standard_deviation"]
    return f"{figures['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def main(arguments: list[str]) -> None:
    tyro.cli(fewshot, args=arguments, prog="vismoe fewshot")
