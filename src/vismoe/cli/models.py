"""vismoe models"""

import json
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vismoe import create_model, list_models
from vismoe.vit import PRESETS, cost


def models(
    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PATTERN]")] = "*", /, json: bool = False
) -> None:
    """List presets: parameters in all, parameters that one token passes through, multiplications per image.

    Counted without allocating weights. Example: vismoe models 'vmoe_b16_*'

    Args:
        pattern: Shell pattern of names.
        json: Print one JSON array instead of a table.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no preset matches {pattern!r}; `vismoe models` lists all")
    shown = Console(stderr=True)
    rows = [
        _row(name) for name in track(names, "counting", console=shown, transient=True, disable=not shown.is_terminal)
    ]
    (_print_json if json else _print_table)(rows)


def _row(name: str) -> dict[str, str | int]:
    with torch.device("meta"):
        model = create_model(name)
    image = PRESETS[name].image
    counted = cost(model, (3, image, image))
    return {
        "name": name,
        "image_size": image,
        "parameters": counted.parameters,
        "active_parameters": counted.active_parameters,
        "multiplications": counted.multiplications,
    }


def _print_json(rows: list[dict[str, str | int]]) -> None:
    print(json.dumps(rows, indent=2))


def _print_table(rows: list[dict[str, str | int]]) -> None:
    table = Table("preset", title="1,000 classes; millions; multiplications: multiply-adds of one image")
    for column in ("image", "parameters", "active per token", "multiplications"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = [f"{int(row[key]) / 1e6:,.2f}" for key in ("parameters", "active_parameters", "multiplications")]
        table.add_row(str(row["name"]), str(row["image_size"]), *numbers)
    Console(width=None if Console().is_terminal else 120).print(table)


def main(arguments: list[str]) -> None:
    tyro.cli(models, args=arguments, prog="vismoe models")
