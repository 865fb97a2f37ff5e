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
    """Make a model folder of a checkpoint of google-research/vmoe, or of an .npz file of a dense ViT of Google's.

    Example: vismoe convert vmoe_s32_last2_ilsvrc2012_randaug_light1 s32

    Args:
        source: What the names of a checkpoint's files begin with (before .index and .data-…), or an .npz file.
        destination: Model folder to write.
        preset: What the files do not say: experts per token, capacity, group size. Known for published names.
        image_size: Pixels; those of the files unless said. Position embeddings are resized.
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
