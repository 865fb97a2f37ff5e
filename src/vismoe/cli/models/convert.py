"""vismoe convert"""

from pathlib import Path
from typing import Annotated

import tyro

from vismoe.vit import cost
from vismoe.weights import PUBLISHED, convert, data_config

from ..shared.notes import refuse_existing


def convert_files(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    /,
    preset: str | None = None,
    image_size: int | None = None,
) -> None:
    """Convert a checkpoint of google-research/vmoe, or an .npz file of a dense Google ViT, to a model folder.

    Example: vismoe convert vmoe_s32_last2_ilsvrc2012_randaug_light1 s32

    Args:
        source: Checkpoint prefix (the files' common name, before .index and .data-…), or an .npz file.
        destination: Model folder to write.
        preset: Preset with what the files lack: experts per token, capacity, group size.
            Not needed for published checkpoints and dense networks.
        image_size: Image size in pixels, for which position embeddings are resized; default: that of the files.
    """
    refuse_existing(destination)
    model = convert(source, destination, preset, image_size)
    size = data_config(model)["input_size"]
    figure = cost(model, size)
    print(
        f"{figure.parameters:,} parameters, {figure.active_parameters:,} active per token, images of "
        f"{size[1]} × {size[2]} pixels, {model.num_classes} classes; written: {destination}"
    )
    if (published := PUBLISHED.get(source.name.removesuffix(".index"))) and published.accuracy:
        print(f"published accuracy on {published.data}: {published.accuracy:.2%} (not measured here)")


def main(arguments: list[str]) -> None:
    tyro.cli(convert_files, args=arguments, prog="vismoe convert")
