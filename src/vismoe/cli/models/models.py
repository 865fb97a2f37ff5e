"""vismoe models"""

import json
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vismoe import create_model, list_models
from vismoe.vit import cost
from vismoe.weights import data_config
from vismoe.weights.published import Published, published_by, tags_of


def models(
    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PATTERN]")] = "*", /, json: bool = False
) -> None:
    """List presets with their parameters, active parameters per token and MACs per image, and their published weights.

    Published weights are named PRESET.TAG, in other commands and in vismoe.create_model(NAME, pretrained=True).
    No weights are allocated or downloaded.

    Example: vismoe models 'vmoe_b16_*'

    Args:
        pattern: Shell pattern of preset names; with a dot, of published weights, as in '*.*ilsvrc2012'.
        json: Print one JSON array instead of a table.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no preset or published weights match {pattern!r}; `vismoe models` lists all")
    console = Console(stderr=True)
    rows = [
        _row(name)
        for name in track(names, "counting", console=console, transient=True, disable=not console.is_terminal)
    ]
    (_print_json if json else _print_table)(rows)


def _row(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        model = create_model(name)
    size = data_config(model)["input_size"]
    model_cost = cost(model, size)
    published = [published_by(name)] if "." in name else tags_of(name).values()
    return {
        "name": name,
        "image_size": size[1],
        "parameters": model_cost.parameters,
        "active_parameters": model_cost.active_parameters,
        "macs": model_cost.macs,
        "weights": [_weights(entry) for entry in published if entry is not None],
    }


def _weights(published: Published) -> dict[str, Any]:
    return {
        "name": f"{published.preset}.{published.tag}",
        "image_size": published.image_size,
        "classes": published.classes,
        "data": published.data,
        "published_accuracy": published.accuracy,
    }


def _print_json(rows: list[dict[str, Any]]) -> None:
    print(json.dumps(rows, indent=2))


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "preset", title="parameters and MACs (multiply-adds per image) in millions; 1,000 classes, or the weights' own"
    )
    for column in ("image", "parameters", "active per token", "MACs"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = [f"{int(row[key]) / 1e6:,.2f}" for key in ("parameters", "active_parameters", "macs")]
        table.add_row(str(row["name"]), str(row["image_size"]), *numbers)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    if weights := [entry for row in rows for entry in row["weights"]]:
        table = Table("weights", title="published weights; accuracies are the published ones, not measured here")
        for column in ("image", "classes", "data", "accuracy"):
            table.add_column(column, justify="right")
        for entry in weights:
            accuracy = "–" if entry["published_accuracy"] is None else f"{entry['published_accuracy']:.2%}"
            table.add_row(entry["name"], str(entry["image_size"]), f"{entry['classes']:,}", entry["data"], accuracy)
        console.print(table)


def main(arguments: list[str]) -> None:
    tyro.cli(models, args=arguments, prog="vismoe models")
