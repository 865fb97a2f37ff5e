"""vismoe upcycle"""

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from vismoe import save, upcycle
from vismoe.vit import cost
from vismoe.weights import data_config, open_trained
from vismoe.weights.folders.save import check_differences

from ..shared.notes import refuse_existing

IMAGES = 4


def upcycle_model(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    num_experts: int = 8,
    layers: str = "last-2",
    k: int | None = None,
    experts: Literal["full", "low-rank"] = "full",
    rank: int = 16,
    shared: bool = False,
    split: int = 1,
    perturb: float = 0.0,
    block_list: str = "",
    only_differences: bool = False,
    seed: int = 0,
) -> None:
    """Make a sparse model of a trained dense one: it starts with the parent's outputs, and has experts to train.

    Example: vismoe upcycle runs/digits_dense sparse --num-experts 4

    Args:
        source: A run folder, a model folder, timm:NAME, hf:ORG/NAME or PRESET.TAG (these download weights).
        destination: Model folder to write.
        num_experts: Experts of each sparse layer.
        layers: last-N (the last N of the odd blocks 1, 3, 5, …), every-N, or numbers from 0 with commas between.
        k: Experts per token; 1 unless said.
        experts: full, a copy of the parent's MLP each, which can be perturbed, cut and merged; low-rank, the MLP frozen
            and low-rank differences, the default of `vismoe finetune`, which train less and did no worse there.
        rank: Of low-rank differences.
        shared: The parent's MLP stays, for every token, beside new experts of a quarter of its width.
        split: Parts that each copy of the MLP is cut into, which are experts then; k is as many.
        perturb: Noise on copies, as a share of each weight's standard deviation.
        block_list: Path of the list of blocks, in networks with several.
        only_differences: Write only what differs from SRC; the folder then needs it.
        seed: Of routers and new weights.
    """
    refuse_existing(destination)
    parent = open_trained(source)
    if only_differences:
        check_differences(parent)
    model = upcycle(
        parent, num_experts, layers, k, experts, rank, shared, split, perturb, seed, block_list=block_list
    ).eval()
    size = data_config(parent)["input_size"]
    images = torch.randn(IMAGES, *size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        difference = (model(images) - parent(images)).abs().max().item()
    lines = [
        f"{title}: {figure.parameters:,} parameters, {figure.active_parameters:,} active per token, "
        f"{figure.multiplications:,} multiplications an image"
        for title, figure in (("parent", cost(parent, size)), ("sparse", cost(model, size)))
    ]
    save(model, destination, parent=source if only_differences else None)
    print(*lines, sep="\n")
    print(f"largest difference of their outputs on {IMAGES} random images: {difference:.1e}; written: {destination}")


def main(arguments: list[str]) -> None:
    tyro.cli(upcycle_model, args=arguments, prog="vismoe upcycle")
