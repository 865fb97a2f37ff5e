"""vismoe densify"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe import densify, save
from vismoe.data import check_images, evaluation_batches
from vismoe.files import counted
from vismoe.inference import Predictor, evaluate
from vismoe.tasks import Evaluation, task_of
from vismoe.vit import check_reducible, cost, measure_usage, reduce_experts
from vismoe.weights import data_config

from ..shared.data import open_set, own_run
from ..shared.model import open_model
from ..shared.notes import note_set, refuse_existing
from ..shared.values import check_at_least


def densify_model(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    data: str,
    num_experts: int = 0,
    how: Literal["merge", "expert"] = "merge",
    images: int = 512,
    batch_size: int | None = None,
    max_unreadable: float = 0.1,
) -> None:
    """Turn a sparse model into a dense one, or into one with fewer experts, for the images of a data set.

    The use of the experts is measured on the training split (without one, on all images). The metrics before and
    after are printed for the validation split; for a run of finetune, for the test split.

    Example: vismoe densify runs/digits dense --data digits

    Args:
        model: Sparse model: a run folder or a model folder.
        destination: Model folder to write.
        data: Data set: digits, fashion-mnist, a folder (see vismoe eval), or a run folder for its data set.
            A run's data set keeps the run's splits.
        num_experts: Number of experts to keep in each layer; 0: the model becomes dense.
        how: merge: average the experts' weights, weighted by how much each is used.
            expert: keep the most used experts unchanged, and drop the others.
            Low-rank experts (finetune --sparse) can be merged into a dense model, but not into fewer experts.
        images: Largest number of images on which the use of the experts is measured.
        batch_size: Images per forward pass; default: 64, for detectors 16.
        max_unreadable: Largest fraction of unreadable files, 0 to 1; they are listed and left out.
    """
    check_at_least(1, images=images, batch_size=1 if batch_size is None else batch_size)
    check_at_least(0, num_experts=num_experts)
    refuse_existing(destination)
    network = open_model(model)
    check_reducible(network, num_experts, how)  # before images are decoded, which may take minutes
    task = task_of(network)
    opened = check_images(task.align_classes(open_set(model, data, task=task)), max_unreadable)
    note_set(opened, network, own_run(model, data) is not None)
    predictor = Predictor(network, task, batch_size=batch_size, optimized=False)
    split = opened.train_and_val[0]
    chosen = split.subset(range(0, len(split), max(1, -(-len(split) // images))))
    batches = evaluation_batches(chosen, predictor.prepare, predictor.batch_size, collate=task.collate)
    for path, usage in measure_usage(network, batches, task.forward).items():
        print(f"{path}: fraction of the tokens per expert {' '.join(f'{share:.3f}' for share in usage.share.tolist())}")
    if num_experts:
        small = reduce_experts(network, num_experts, batches, how, forward=task.forward)
    else:
        small = densify(network, batches, how, forward=task.forward)
    lines = []
    for title, candidate in (("before", network), ("after", small)):
        evaluation = evaluate(candidate, opened.val, predictor.batch_size)
        parameters = cost(candidate, data_config(candidate)["input_size"]).parameters
        lines.append(
            f"{title}: {_figures(evaluation)} on {counted(len(opened.val), 'image')}, {parameters:,} parameters"
        )
    save(small, destination)
    print(*lines, f"written: {destination}", sep="\n")


def _figures(evaluation: Evaluation) -> str:
    """The primary metric, and the loss of a task that has one."""
    names = [next(iter(evaluation.metrics)), *(["loss"] if "loss" in evaluation.metrics else [])]
    return ", ".join(f"{name.replace('_', ' ')} {evaluation.metrics[name]:.4f}" for name in names)


def main(arguments: list[str]) -> None:
    tyro.cli(densify_model, args=arguments, prog="vismoe densify")
