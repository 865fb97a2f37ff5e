"""vismoe upcycle"""

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch.utils._pytree import tree_leaves

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
    moe_layers: Annotated[str, tyro.conf.arg(aliases=["--layers"])] = "last-2",
    k: int | None = None,
    experts: Literal["full", "low-rank"] = "full",
    rank: int | None = None,
    shared: bool = False,
    split: int = 1,
    perturb: float = 0.0,
    block_list: str = "",
    only_differences: bool = False,
    seed: int = 0,
) -> None:
    """Turn a trained dense model (the parent) into a sparse one, which starts with the parent's outputs.

    Example: vismoe upcycle runs/digits_dense sparse --num-experts 4

    Args:
        source: Dense model: a run folder, a model folder, or timm:NAME, hf:ORG/NAME, PRESET.TAG (downloads).
        destination: Model folder to write.
        num_experts: Number of experts in each sparse layer.
        moe_layers: Sparse blocks: last-N (of the odd blocks 1, 3, 5, …), every-N, or numbers from 0 such as 1,3,5.
        k: Number of experts per token; default: the value of --split.
        experts: full: each expert is a copy of the parent's MLP.
            low-rank: each expert is a low-rank difference from the frozen MLP (the default of vismoe finetune).
        rank: Rank of low-rank experts, only with --experts low-rank; default: 16.
        shared: Keep the parent's MLP for every token, and add new experts with a quarter of its width.
        split: Cut each copy of the MLP into this many smaller experts; k is then this number.
        perturb: Noise added to the copies, as a fraction of each weight's standard deviation.
        block_list: Path of the list of blocks, for networks with several lists.
        only_differences: Write only the tensors that differ from SRC; the folder then needs SRC to be loaded.
        seed: Seed of the routers and other new weights.
    """
    refuse_existing(destination)
    parent = open_trained(source)
    if only_differences:
        check_differences(parent)
    model = upcycle(
        parent, num_experts, moe_layers, k, experts, rank, shared, split, perturb, seed, block_list=block_list
    ).eval()
    size = data_config(parent)["input_size"]
    images = torch.randn(IMAGES, *size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        pairs = zip(tree_leaves(model(images)), tree_leaves(parent(images)), strict=True)
        difference = max((one - other).abs().max().item() for one, other in pairs if isinstance(one, torch.Tensor))
    lines = [
        f"{title}: {figure.parameters:,} parameters, {figure.active_parameters:,} active per token, "
        f"{figure.macs:,} MACs per image"
        for title, figure in (("parent", cost(parent, size)), ("sparse", cost(model, size)))
    ]
    save(model, destination, parent=source if only_differences else None)
    print(*lines, sep="\n")
    print(f"largest difference of their outputs on {IMAGES} random images: {difference:.1e}; written: {destination}")


def main(arguments: list[str]) -> None:
    tyro.cli(upcycle_model, args=arguments, prog="vismoe upcycle")
