"""vismoe eval"""

import json as json_format
import sys
from typing import Annotated, Literal

import torch
import tyro

from vismoe.data import NAMED, open_data
from vismoe.training import Run, evaluate, label_names, resolve_device

from .model import open_model


def evaluate_model(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    data: str,
    json: bool = False,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 256,
    workers: int = 0,
) -> None:
    """Evaluate a model on the held-out part of a set, or on a folder of images.

    Example: vismoe eval runs/demo --data digits

    Args:
        model: A run folder, a model folder, or a preset (with random weights).
        data: "digits", "fashion-mnist", or a folder of class folders (or of train/ and val/, of which val/ is used).
        json: Print one JSON object; top1 is in 0…1.
        device: auto, cpu, cuda or mps.
        dtype: float32, or bfloat16 by autocast.
        batch_size: Images of one forward pass.
        workers: Processes that prepare images; 0 for none.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size={batch_size}, workers={workers}: accepted are at least 1 and at least 0")
    network = open_model(model, num_classes=10 if data in NAMED else None).to(resolve_device(device))
    run = Run.of(model)
    opened = open_data(data, run.recipe.split_seed if run is not None and run.recipe.data == data else 0)
    known = list(label_names(network))
    if len(known) != len(opened.classes) or (known != opened.classes and known != [str(i) for i in range(len(known))]):
        raise ValueError(f"{model} knows {len(known)} classes ({_some(known)}), {data} has {_some(opened.classes)}")
    with torch.autocast(next(network.parameters()).device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        result = evaluate(network, opened.val, batch_size, workers)
    figures = {
        "model": model,
        "data": data,
        "images": len(opened.val),
        "top1": result.top1,
        "top5": result.top5,
        "per_class": dict(zip(opened.classes, result.per_class, strict=True)),
        "calibration_error": result.calibration_error,
        "loss": result.loss,
        "images_per_second": result.images_per_second,
        "load": result.load,
    }
    if json:
        print(json_format.dumps(figures))
        return
    speed = f"{result.images_per_second:.0f} images/s"
    print(
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f}, loss {result.loss:.4f}, expected calibration error "
        f"{result.calibration_error:.4f} on {len(opened.val)} images, {speed}"
    )
    worst = sorted(zip(result.per_class, opened.classes, strict=True))
    print(f"top-1 by class, worst first: {', '.join(f'{name} {share:.4f}' for share, name in worst)}")
    for name, load in result.load.items():
        print(f"{name}: load of the experts {load}, max ÷ mean {max(load) * len(load) / max(1, sum(load)):.2f}")
    sys.stdout.flush()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def main(arguments: list[str]) -> None:
    tyro.cli(evaluate_model, args=arguments, prog="vismoe eval")
