"""vismoe bench"""

import io
import sys
from csv import DictWriter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from vismoe import create_model, kernels_in_use, optimize
from vismoe.files import write_text
from vismoe.inference import measure_speed
from vismoe.kernels import native
from vismoe.parallel import resolve_device
from vismoe.vit import PRESETS, cost, dense_twin
from vismoe.weights import data_config, parse_source, set_image_size

from ..shared.model import open_resized
from ..shared.notes import note


def bench(
    models: Annotated[
        list[str], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL…", help_behavior_hint="(required)")
    ],
    /,
    batch_sizes: tuple[int, ...] = (1, 16),
    image_size: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    seconds: float = 2.0,
    twins: bool = True,
    csv: Path | None = None,
) -> None:
    """Compare networks: parameters, MACs, latency, images per second and memory.

    On a CPU each is measured as it is and as vismoe.optimize makes it, in float32 and, where the processor has it, in
    bfloat16; all in turn. A sparse preset comes with the
    dense network of the same trunk. Presets and names of timm's have random weights: these are as fast.

    Example: vismoe bench vmoe_small_patch16_224_every2_e8 timm:vit_small_patch16_224

    Args:
        models: Run folders, model folders, presets, timm:NAME, hf:ORG/NAME, PRESET.TAG.
        batch_sizes: Images per forward pass; each is measured.
        image_size: Height and width in pixels; default: each model's.
        threads: Threads of a CPU; default: PyTorch's.
        device: Device: auto, cpu, cuda or mps.
        seconds: About how long each network is measured per batch size.
        twins: Whether the dense twins of sparse presets are measured too.
        csv: File to write the table to; its folder is created.
    """
    if not models:
        raise ValueError("no models given: vismoe bench MODEL…; `vismoe models` lists presets")
    if csv is not None and csv.exists():
        raise FileExistsError(f"{csv} exists: choose another name, or remove it")
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads {threads}: it must be at least 1")
        torch.set_num_threads(threads)
    found = resolve_device(device)
    rows: dict[str, dict[str, Any]] = {}
    networks: dict[str, nn.Module] = {}
    for name in _with_twins(models) if twins else dict.fromkeys(models):
        network = _open(name, image_size)
        _, height, width = data_config(network)["input_size"]
        counted = cost(network, data_config(network)["input_size"])
        row = {
            "model": name,
            "form": "as it is",
            "image_size": height if height == width else f"{height} × {width}",
            "parameters": counted.parameters,
            "active_parameters": counted.active_parameters,
            "macs": counted.macs,
        }
        networks[name], rows[name] = network, row
        for form, dtype in _forms(found).items():
            networks[f"{name}, {form}"], rows[f"{name}, {form}"] = optimize(network, dtype), row | {"form": form}
    for size in batch_sizes:
        for name, speed in measure_speed(networks, size, seconds, found).items():
            rows[name] |= {f"{key}_{size}": value for key, value in asdict(speed).items() if key != "batch_size"}
    where = f"{found}, {torch.get_num_threads()} threads, kernels: {kernels_in_use()}" if found.type == "cpu" else found
    _print_table(list(rows.values()), batch_sizes, f"random images; {where}")
    if csv is not None:
        write_text(csv, _as_csv(list(rows.values())))
        note(f"wrote {csv}")


def _open(name: str, image_size: int | None) -> nn.Module:
    """The network; of a preset and a name of timm's with random weights, which are as fast and need no download."""
    if parse_source(name).kind not in ("preset", "timm"):
        return open_resized(name, image_size).eval()
    network = create_model(name)
    if image_size is not None:
        set_image_size(network, image_size, name)
    return network.eval()


def _forms(device: torch.device) -> dict[str, str]:
    """Names and types of what `vismoe.optimize` makes on a device."""
    if device.type != "cpu" or native() is None:
        return {}
    return {"optimized": "float32"} | ({"optimized, bfloat16": "bfloat16"} if native().has_bfloat16() else {})


def _with_twins(names: list[str]) -> list[str]:
    """The names, each sparse preset followed by its dense twin."""
    return list(
        dict.fromkeys(other for name in names for other in ((name, dense_twin(name)) if name in PRESETS else (name,)))
    )


def _print_table(rows: list[dict[str, Any]], batch_sizes: tuple[int, ...], title: str) -> None:
    table = Table("model", "form", title=title)
    for column in ("pixels", "parameters (M)", "active (M)", "GMACs"):
        table.add_column(column, justify="right")
    for size in batch_sizes:
        images = "image" if size == 1 else "images"
        for column in (f"{size} {images}: ms", "images/s", "MB"):
            table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row[key] / 1e6:.1f}" for key in ("parameters", "active_parameters")] + [f"{row['macs'] / 1e9:.2f}"]
        for size in batch_sizes:
            megabytes = row[f"megabytes_{size}"]
            cells += [
                f"{row[f'milliseconds_{size}']:.2f}",
                f"{row[f'images_per_second_{size}']:.1f}",
                "–" if megabytes is None else f"{megabytes:.0f}",
            ]
        table.add_row(escape(row["model"]), row["form"], str(row["image_size"]), *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(arguments: list[str]) -> None:
    tyro.cli(bench, args=arguments, prog="vismoe bench")
