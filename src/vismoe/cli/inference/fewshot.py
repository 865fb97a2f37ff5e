"""vismoe fewshot"""

import json as json_format
import sys
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from vismoe.data import check_images
from vismoe.features import check_shots, few_shot
from vismoe.parallel import resolve_device
from vismoe.training import Run

from ..shared.data import open_set, own_run
from ..shared.model import open_resized
from ..shared.notes import note, note_left_out
from ..shared.progress import ImageProgress


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
    """Say how much a few images of each class teach, given a model's features: accuracy on the held-out part of a
    set, of least squares in closed form and of the 20 nearest neighbours, mean and standard deviation over seeds.

    Example: vismoe fewshot runs/demo --data digits --shots 1,5

    Args:
        model: A run folder, a model folder, timm:NAME, hf:ORG/NAME or PRESET.TAG (download), or a random preset.
        data: "digits", "fashion-mnist", or a folder of class folders, or of images with a metadata.csv; of one in one
            piece a quarter is held out. By default a run's own set: images are drawn from what it was trained on, and
            judged are those that it was tested on.
        shots: How many images of each class, with commas between. Those that some class has too few images for are
            left out; up to 25 more of each class choose the regularisation.
        seeds: How often images are drawn anew.
        protocol: How the regularisation is chosen. validated: by the further images; reference: of 2^-10 to 2^19 by
            the held-out part itself, as google-research/vmoe does, for figures to compare with published ones.
        max_unreadable: Largest share of a folder's files that may be unreadable; they are named and left out.
        json: Print one JSON object; shares are in 0…1.
        image_size: Images are prepared at this size, a multiple of the network's patch; by default at its own.
            Smaller is quicker: time goes with its square.
        device: auto, cpu, cuda or mps.
        batch_size: Images of one forward pass.
        workers: Processes that prepare images; 0 for none.
    """
    if batch_size < 1 or workers < 0 or seeds < 1:
        raise ValueError(f"batch_size={batch_size}, workers={workers}, seeds={seeds}: accepted are at least 1, 0 and 1")
    requested_shots = _numbers(shots)
    run, run_of_set = Run.of(model), own_run(model, data)
    data = data or (run_of_set.recipe.data if run_of_set is not None else "")
    network = open_resized(model, image_size).to(resolve_device(device))
    opened = open_set(model, data, 0 if run is None else run.recipe.split_seed, workers=workers)
    opened = check_images(opened, max_unreadable, workers)
    for entry in opened.left_out:
        note_left_out(entry)
    possible = check_shots(opened, requested_shots, protocol)
    for number in sorted(set(requested_shots) - set(possible)):
        note(f"{number} shots are left out: some class of {data} has too few images to train on")
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
    set_title = "images of the test split" if is_test else "held-out images"
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
        raise ValueError(f"shots={text!r}: expected whole numbers with commas between, such as 1,5,10") from error


def _figures(accuracies: list[float]) -> dict[str, Any]:
    deviation = stdev(accuracies) if len(accuracies) > 1 else None
    return {"mean": mean(accuracies), "standard_deviation": deviation, "each": accuracies}


def _mean_and_deviation(figures: Any) -> str:
    deviation = figures["standard_deviation"]
    return f"{figures['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def main(arguments: list[str]) -> None:
    tyro.cli(fewshot, args=arguments, prog="vismoe fewshot")
