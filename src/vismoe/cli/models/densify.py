"""vismoe densify"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor, nn

from vismoe import densify, save
from vismoe.data import Data, check_images, evaluation_batches, evaluation_transform
from vismoe.inference import evaluate
from vismoe.tasks import task_of
from vismoe.vit import cost, measure_usage, reduce_experts
from vismoe.weights import data_config

from ..shared.data import open_set
from ..shared.model import open_model
from ..shared.notes import note_left_out, refuse_existing


def densify_model(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    data: str,
    num_experts: int = 0,
    how: Literal["merge", "expert"] = "merge",
    images: int = 512,
    batch_size: int = 64,
    max_unreadable: float = 0.1,
) -> None:
    """Make a dense model of a sparse one, or one with fewer experts, for the domain of a set; says what it costs.

    Which experts the set uses is measured on its training part (on all of a set without one), the loss on its
    held-out part. Example: vismoe densify runs/digits dense --data digits

    Args:
        model: A run folder or a model folder.
        destination: Model folder to write.
        data: The domain: digits, fashion-mnist, or a folder (see vismoe eval); a run's own in the run's own parts.
        num_experts: Experts that stay in each layer; 0: none, the model is dense.
        how: merge, the experts' weights are averaged as much as the set uses them; expert, the most used stay as they
            are and the others are dropped.
        images: Of the set that the use is measured on, at most.
        batch_size: Images of one forward pass.
        max_unreadable: Largest share of a folder's files that may be unreadable; they are named and left out.
    """
    if images < 1 or batch_size < 1 or num_experts < 0:
        raise ValueError(f"images={images}, batch_size={batch_size}, num_experts={num_experts}: at least 1, 1 and 0")
    refuse_existing(destination)
    network = open_model(model)
    task = task_of(network)
    opened = check_images(task.known_to_model(open_set(model, data, task=task)), max_unreadable)
    for entry in opened.left_out:
        note_left_out(entry)
    for path, usage in measure_usage(network, _pixels(network, opened, images, batch_size)).items():
        print(
            f"{path}: share of the tokens of each expert {' '.join(f'{share:.3f}' for share in usage.share.tolist())}"
        )
    batches = _pixels(network, opened, images, batch_size)
    small = reduce_experts(network, num_experts, batches, how) if num_experts else densify(network, batches, how)
    lines = []
    for title, candidate in (("before", network), ("after", small)):
        evaluation, size = evaluate(candidate, opened.val, batch_size), data_config(candidate)["input_size"]
        name, score = next(iter(evaluation.metrics.items()))
        figures = f"{name.replace('_', ' ')} {score:.4f}, loss {evaluation.metrics['loss']:.4f}"
        lines.append(f"{title}: {figures} on {len(opened.val)} images, {cost(candidate, size).parameters:,} parameters")
    save(small, destination)
    print(*lines, f"written: {destination}", sep="\n")


def _pixels(model: nn.Module, data: Data, images: int, batch_size: int) -> Iterator[Tensor]:
    part = data.parts[0]
    part = part.subset(range(0, len(part), max(1, -(-len(part) // images))))
    for batch in evaluation_batches(part, evaluation_transform(data_config(model)), batch_size):
        yield batch["image"]


def main(arguments: list[str]) -> None:
    tyro.cli(densify_model, args=arguments, prog="vismoe densify")
