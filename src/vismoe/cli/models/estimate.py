"""vismoe estimate"""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.distributed.fsdp import MixedPrecisionPolicy

from vismoe.files.amounts import as_text
from vismoe.scale import Estimate, Layout
from vismoe.scale import estimate as estimated

from ..shared.values import check_at_least


def estimate(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    devices: int,
    memory: str = "80GiB",
    batch: int = 8,
    dtype: Literal["float32", "bfloat16"] = "float32",
    static: bool = False,
    recompute: bool = False,
    replicate: int = 1,
    optimizer_states: int = 2,
    width: int | None = None,
    depth: int | None = None,
    experts: int | None = None,
    json: bool = False,
) -> None:
    """Estimate memory and traffic of training a network on many devices, for every number of devices that share the
    experts.

    Nothing is trained or allocated, and no device is needed. Memory of parameters, gradients and optimiser is exact;
    activations and gathered parameters are estimates. Traffic is what one device sends in a step.

    Example: vismoe estimate vmoe_15b_every2_e32 --devices 64 --dtype bfloat16

    Args:
        model: A preset, PRESET.TAG or timm:NAME, whose weights are not read; a run or model folder, hf:ORG/NAME.
        devices: Number of devices.
        memory: Memory of a device.
        batch: Images per device and step.
        dtype: Type in which parameters are gathered and products computed; weights and sums of gradients are float32.
        static: Whether the exchange has buffers of one size instead of counts.
        recompute: Whether each block is recomputed in backward (activation checkpointing).
        replicate: Number of copies of the sharded weights, as in hybrid sharding.
        optimizer_states: Tensors that the optimiser keeps for each parameter: 2 for AdamW, 1 for SGD with momentum.
        width: Width of a preset's tokens; default: its own.
        depth: Number of a preset's blocks; default: its own.
        experts: Number of experts of a layer; default: the preset's own.
        json: Print JSON instead of a table.
    """
    changed = {"embed_dim": width, "depth": depth, "num_experts": experts}
    check_at_least(1, **{name: value for name, value in {"width": width, "depth": depth}.items() if value is not None})
    overrides = {name: value for name, value in changed.items() if value is not None}
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if dtype == "bfloat16" else None
    found = estimated(
        model, devices, batch, memory, static, recompute, replicate, policy, optimizer_states, **overrides
    )
    if json:
        _print_json(found)
    else:
        _print_tables(model, found)


def _print_json(found: Estimate) -> None:
    rows = asdict(found)
    for row, layout in zip(rows["layouts"], found.layouts, strict=True):
        row["memory"]["total"], row["traffic"]["total"] = layout.memory.total, layout.traffic.total
    rows["best"] = None if found.best is None else found.layouts.index(found.best)
    print(json.dumps(rows, indent=2))


def _print_tables(model: str, found: Estimate) -> None:
    what = f"{model}: {found.parameters / 1e9:,.2f} B parameters; {found.devices} devices, {found.batch} images each"
    kept = ("parameters", "gradients", "optimiser", "gathered", "activations", "sum", "images that fit", "")
    moved = ("exchange of a layer", "all layers", "parameters", "gradients", "sum")
    memory, traffic = _table(f"{what}; memory of a device", kept), _table("sent by a device in a step", moved)
    for layout in found.layouts:
        place = str(layout.dp), str(layout.ep)
        part, exchange = layout.memory, layout.traffic.exchange.values()
        parts = (part.parameters, part.gradients, part.optimizer, part.gathered, part.activations, part.total)
        memory.add_row(*place, *map(as_text, parts), f"{layout.largest_batch:,}", _verdict(layout, found))
        sent = (max(exchange, default=0), sum(exchange), layout.traffic.parameters, layout.traffic.gradients)
        traffic.add_row(*place, *map(as_text, (*sent, layout.traffic.total)))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(memory)
    console.print(traffic)
    print(_summary(found))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for column in ("dp", "ep", *columns):
        table.add_column(column, justify="right" if column else "left")
    return table


def _verdict(layout: Layout, found: Estimate) -> str:
    if layout.stopped_by == "memory":
        return f"memory: {layout.memory.total / found.limit:.1f} × the limit"
    if layout.stopped_by == "traffic" and found.best is not None:
        return f"traffic: {layout.traffic.total / max(1, found.best.traffic.total):.1f} × the best"
    return "best"


def _summary(found: Estimate) -> str:
    """What the tables say in words."""
    limit = as_text(found.limit)
    if found.best is None:
        least = min(found.layouts, key=lambda layout: layout.memory.total).memory
        kept = as_text(least.parameters + least.gradients + least.optimizer)
        return (
            f"No layout fits into {limit}: the smallest takes {as_text(least.total)}, of which {kept} are "
            "parameters, gradients and optimiser. What helps: more devices, a smaller --batch, --recompute, "
            "--dtype bfloat16."
        )
    best = found.best
    intensity = found.macs / best.traffic.total if best.traffic.total else float("inf")
    return (
        f"Best: dp {best.dp}, ep {best.ep}: {as_text(best.memory.total)} of {limit}, which about "
        f"{best.largest_batch:,} images fill; {as_text(best.traffic.total)} sent in a step, {intensity:,.0f} MACs for "
        "each byte."
    )


def main(arguments: list[str]) -> None:
    tyro.cli(estimate, args=arguments, prog="vismoe estimate")
