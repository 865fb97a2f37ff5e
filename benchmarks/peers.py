"""Compares the time of vismoe's layers with that of other libraries' layers that compute the same.

    pip install -c constraints.txt -e '.[bench]'     # the other libraries
    python benchmarks/peers.py                       # every shape, one and two threads: some minutes of two idle cores
    python benchmarks/peers.py --clock cpu --threads 1    # a first look on a busy machine: processor time

Each library's layer gets the weights of a layer of vismoe's, and its outputs are compared with that one's before it is
measured ("difference": the largest, relative to the largest output). In float32 on a CPU, with new inputs each time;
all layers of a family run in turn, forward without gradient and forward with backward, and medians are compared.

| family | computes | libraries |
| --- | --- | --- |
| mlp | token choice, experts with GELU and biases | DeepSpeed's MoE, one process, no token dropped |
| gated | token choice, experts with a SiLU gate, no biases | transformers' OLMoE block |
| soft | soft routing, as many slots as tokens | soft-moe-pytorch |

A library is measured at each of its settings; what cannot run has a row that says why. Writes results/peers.csv.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from table import Table
from timing import Side, forward, medians, processor
from torch import Tensor, nn
from torch.nn import functional as F

import vismoe

RESULTS = Path(__file__).parent / "results" / "peers.csv"
SECONDS = 0.5
"""About how long each layer is measured, on average."""
MOST_BYTES = 4e9
"""A setting that would copy more than this of weights is not run."""
SAME = 1e-3
"""Largest difference of outputs in float32, relative to the largest output; a layer that differs more computes
something else, and is not measured."""
MODULES = {"deepspeed": "deepspeed", "soft_moe_pytorch": "soft-moe-pytorch", "transformers": "transformers"}
"""The modules of the extra `bench`, and the packages that have them."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Processor time is that of all threads together, and does not depend on other processes' shares of the processor."""
Family = Literal["mlp", "gated", "soft"]


@dataclass(frozen=True)
class Shape:
    """The size of a layer and of its input: images × tokens of an image, width, hidden width, experts, experts per
    token."""

    images: int
    tokens: int
    dim: int
    hidden: int
    num_experts: int
    k: int

    def __str__(self) -> str:
        batch = f"{self.images} × {self.tokens} tokens"
        return f"{batch}, d={self.dim}, h={self.hidden}, E={self.num_experts}, k={self.k}"


SHAPES = (
    Shape(8, 256, 384, 1536, 8, 1),
    Shape(8, 256, 384, 1536, 8, 2),
    Shape(8, 256, 384, 1536, 64, 1),
    Shape(1, 196, 384, 1536, 8, 1),
    Shape(32, 36, 128, 512, 32, 1),
    Shape(1, 36, 128, 512, 32, 1),
)


class NotRunError(Exception):
    """Why a layer is not run."""


@dataclass(frozen=True)
class Peer:
    """A library's layer at one of its settings.

    - `family`: which layer of vismoe's it is compared with.
    - `library`: the name of its distribution.
    - `setting`: the setting.
    - `build`: (vismoe's layer, shape) -> the library's layer with the same weights.
    """

    family: Family
    library: str
    setting: str
    build: Callable[[vismoe.MoE, Shape], nn.Module]


def reference(family: Family, shape: Shape) -> vismoe.MoE:
    """vismoe's layer of a family.

    **Raises:** NotRunError where a family has no layer of a shape.
    """
    dim, hidden, num_experts = shape.dim, shape.hidden, shape.num_experts
    router: Any
    if family == "soft":
        if shape.k > 1:
            raise NotRunError("soft routing has no k")
        router = vismoe.SoftRouter(dim, num_experts, max(1, shape.tokens // num_experts))
        nn.init.constant_(router.scale, dim)  # soft-moe-pytorch's vectors have the length √d
        return vismoe.MoE(router, vismoe.MLPExperts(dim, hidden, num_experts, activation=F.gelu))
    combine: Any = "gate" if shape.k == 1 else "renormalized"
    router = vismoe.TopKRouter(dim, num_experts, shape.k, balance="none", combine=combine)
    if family == "mlp":
        return vismoe.MoE(router, vismoe.MLPExperts(dim, hidden, num_experts))
    experts = vismoe.MLPExperts(dim, hidden, num_experts, activation=F.silu, gated=True, bias=False)
    return vismoe.MoE(router, experts)


class First(nn.Module):
    """A module's first output."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)[0]
        return y


def deepspeed(setting: str) -> Callable[[vismoe.MoE, Shape], nn.Module]:
    """DeepSpeed's MoE in one process. Every token is processed, none is chosen at random, as in vismoe's layer."""

    def build(layer: vismoe.MoE, shape: Shape) -> nn.Module:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        with quiet():
            moe = importlib.import_module("deepspeed.moe.layer")
            if setting == "Tutel" and importlib.util.find_spec("tutel") is None:
                raise NotRunError("Tutel is not installed: it is not on the Python Package Index")
            expert = nn.Sequential(
                nn.Linear(shape.dim, shape.hidden), nn.GELU(approximate="tanh"), nn.Linear(shape.hidden, shape.dim)
            )
            made = moe.MoE(
                shape.dim,
                expert,
                num_experts=shape.num_experts,
                k=shape.k,
                min_capacity=0,
                drop_tokens=False,
                use_rts=False,
                use_tutel=setting == "Tutel",
                top2_2nd_expert_sampling=False,
            )
        copy_(made.deepspeed_moe.gate.wg.weight, layer.router.weight)
        copy_mlps([(mlp[0], mlp[2]) for mlp in made.deepspeed_moe.experts.deepspeed_experts], layer)
        return First(made)

    return build


def olmoe(setting: str) -> Callable[[vismoe.MoE, Shape], nn.Module]:
    """transformers' OLMoE block, with one of its implementations of experts."""

    def build(layer: vismoe.MoE, shape: Shape) -> nn.Module:
        if setting == "batched_mm":
            rows = shape.images * shape.tokens * shape.k
            size = rows * 3 * shape.hidden * shape.dim * 4
            if size > MOST_BYTES:
                raise NotRunError(f"copies the weights of its expert for each row: {size / 1e9:.0f} GB")
        with quiet():
            models = importlib.import_module("transformers.models.olmoe.modeling_olmoe")
            config = models.OlmoeConfig(
                hidden_size=shape.dim,
                intermediate_size=shape.hidden,
                num_experts=shape.num_experts,
                num_experts_per_tok=shape.k,
                norm_topk_prob=shape.k > 1,
                hidden_act="silu",
            )
            config._experts_implementation = setting
            block = models.OlmoeSparseMoeBlock(config)
        experts: Any = layer.experts
        copy_(block.gate.weight, layer.router.weight)
        copy_(block.experts.gate_up_proj, torch.cat([experts.gate.weight, experts.up.weight], 1))
        copy_(block.experts.down_proj, experts.down.weight)
        made: nn.Module = block
        return made

    return build


def soft_moe(layer: vismoe.MoE, shape: Shape) -> nn.Module:
    """soft-moe-pytorch's layer; experts stay where they are."""
    library = importlib.import_module("soft_moe_pytorch")
    router: Any = layer.router
    made: nn.Module = library.SoftMoE(
        shape.dim,
        num_experts=shape.num_experts,
        num_slots=router.slots_per_expert,
        expert_mult=shape.hidden / shape.dim,
        offload_unused_experts_to_cpu=False,
    )
    copy_(made.slot_embeds, router.weight.view_as(made.slot_embeds))
    copy_mlps([(mlp[0], mlp[3]) for mlp in made.experts.experts], layer)
    return made


PEERS = (
    Peer("mlp", "deepspeed", "no token dropped", deepspeed("no token dropped")),
    Peer("mlp", "deepspeed", "Tutel", deepspeed("Tutel")),
    *(
        Peer("gated", "transformers", name, olmoe(name))
        for name in ("eager", "batched_mm", "grouped_mm", "deepgemm", "sonicmoe")
    ),
    Peer("soft", "soft-moe-pytorch", "no offload", soft_moe),
)


@torch.no_grad()
def copy_(to: Tensor, values: Any) -> None:
    to.copy_(values)


def copy_mlps(mlps: list[tuple[Any, Any]], layer: vismoe.MoE) -> None:
    """Copies the experts of a layer of vismoe's to pairs of linear layers."""
    experts: Any = layer.experts
    for number, (up, down) in enumerate(mlps):
        for linear, stacked in ((up, experts.up), (down, experts.down)):
            copy_(linear.weight, stacked.weight[number])
            copy_(linear.bias, stacked.bias[number])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries log what they find out about a machine; a table has no place for that."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def forward_backward(module: nn.Module, x: Tensor) -> None:
    """With a dense gradient of the outputs, as in a network."""
    for parameter in module.parameters():
        parameter.grad = None
    y = module(x.requires_grad_())
    y.backward(torch.ones_like(y))


def source(shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Inputs of the length √d, which soft-moe-pytorch's normalisation does not change."""

    def inputs() -> Tensor:
        x = torch.randn(shape.images, shape.tokens, shape.dim, device=device)
        return (F.normalize(x, dim=-1) * shape.dim**0.5).to(dtype)

    return inputs


def measure(
    family: Family,
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = SECONDS,
    clock: str = "wall",
) -> list[dict[str, Any]]:
    """A row for each layer of a family: milliseconds, or why there are none."""
    settings = [("vismoe", "as it is")] + [("vismoe", "optimized")] * (device == "cpu" and dtype == torch.float32)
    settings += [(peer.library, peer.setting) for peer in PEERS if peer.family == family]
    rows = {
        (library, setting): {
            **asdict(shape),
            "device": device,
            "threads": torch.get_num_threads() if device == "cpu" else "",
            "clock": clock,
            "dtype": str(dtype).removeprefix("torch."),
            "family": family,
            "library": library,
            "version": version_of(library),
            "setting": setting,
            "forward_ms": "",
            "forward_backward_ms": "",
            "difference": "",
            "why_not": "",
        }
        for library, setting in settings
    }
    layers = build_all(family, shape, device, dtype, rows)
    inputs = source(shape, device, dtype)
    for name, run in (("forward", forward), ("forward_backward", forward_backward)):
        sides: dict[str, Side] = {}
        for key, layer in layers.items():
            if name == "forward_backward" and key == ("vismoe", "optimized"):
                continue
            try:
                run(layer.train(name == "forward_backward"), inputs())
            except Exception as error:
                rows[key]["why_not"] = f"{name.replace('_', ' and ')}: {reason(error)}"
            else:
                sides[" ".join(key)] = (run, layer)
        try:
            milliseconds = medians(sides, inputs, seconds, 7, CLOCKS[clock]) if sides else {}
        except Exception as error:  # too little memory for some of them at once
            milliseconds = {}
            for key in layers:
                rows[key]["why_not"] = rows[key]["why_not"] or f"{name.replace('_', ' and ')}: {reason(error)}"
        for key, row in rows.items():
            if " ".join(key) in milliseconds:
                row[f"{name}_ms"] = round(milliseconds[" ".join(key)], 4)
    return list(rows.values())


def build_all(
    family: Family, shape: Shape, device: str, dtype: torch.dtype, rows: dict[tuple[str, str], dict[str, Any]]
) -> dict[tuple[str, str], nn.Module]:
    """The layers that can be built and agree with vismoe's; the rows of others get a reason."""
    torch.manual_seed(0)
    builders = {(peer.library, peer.setting): peer.build for peer in PEERS if peer.family == family}
    try:
        layer = reference(family, shape)
    except NotRunError as error:
        for row in rows.values():
            row["why_not"] = str(error)
        return {}
    x = source(shape, "cpu", torch.float32)()
    with torch.inference_mode():
        expected = layer.eval()(x)
    layers: dict[tuple[str, str], nn.Module] = {}
    for key, row in rows.items():
        try:
            if key == ("vismoe", "as it is"):
                made: nn.Module = layer
            elif key == ("vismoe", "optimized"):
                if vismoe.kernels_in_use().startswith("none"):
                    raise NotRunError(f"compiled kernels in use: {vismoe.kernels_in_use()}")
                made = vismoe.optimize(layer)
            else:
                made = builders[key](layer, shape)
            made = made if key[1] == "optimized" else made.to(device, dtype)
            with torch.inference_mode():
                y = made.eval()(x.to(device, dtype)).float().cpu()
            difference = float((y - expected).abs().max() / expected.abs().max())
            row["difference"] = f"{difference:.1e}"
            if dtype == torch.float32 and difference > SAME:
                raise NotRunError(f"its outputs differ from vismoe's by {difference:.1e}")
            layers[key] = made
        except Exception as error:
            row["why_not"] = reason(error)
    return layers


def reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, NotRunError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in MODULES:
        return f"{MODULES[error.name]} is not installed: pip install 'vismoe[bench]'"
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return text if len(text) <= 160 else text[:159] + "…"


def version_of(library: str) -> str:
    """The version of a distribution; empty where there is none."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def as_table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: a line for each case and library, at the library's fastest setting, then what did not run."""
    lines = [
        "| family | case | threads | vismoe | optimized | library, fastest setting | ÷ vismoe | vismoe, training "
        "| library, training | ÷ vismoe |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cases: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        where = str(row["threads"]) if row["device"] == "cpu" else row["device"]
        place = where if row["dtype"] == "float32" else f"{where}, {row['dtype']}"
        cases.setdefault((row["family"], str(shape_of(row)), place), []).append(row)
    for place_of_case, of_case in cases.items():
        own = {row["setting"]: row for row in of_case if row["library"] == "vismoe"}
        optimized = own.get("optimized", {}).get("forward_ms", "")
        for library in dict.fromkeys(row["library"] for row in of_case if row["library"] != "vismoe"):
            of_library = [row for row in of_case if row["library"] == library]
            as_it_is, (setting, best), (trained_as, trained) = (
                own["as it is"],
                fastest(of_library, "forward_ms"),
                fastest(of_library, "forward_backward_ms"),
            )
            own_best = as_it_is["forward_ms"] if optimized == "" else optimized
            cells = [
                *place_of_case,
                in_ms(as_it_is["forward_ms"]),
                in_ms(optimized),
                f"{library}, {setting}: {in_ms(best)}" if setting else f"{library}: not run",
                ratio(best, own_best),
                in_ms(as_it_is["forward_backward_ms"]),
                f"{trained_as}: {in_ms(trained)}" if trained_as else "not run",
                ratio(trained, as_it_is["forward_backward_ms"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    reasons: dict[str, set[str]] = {}
    for row in rows:
        if row["why_not"]:
            what = f"{row['library']}, {row['setting']} ({row['family']}): {row['why_not']}"
            reasons.setdefault(what, set()).add(str(shape_of(row)))
    everything = {str(shape_of(row)) for row in rows}
    lines += ["", "Not run:", ""] if reasons else []
    for what, shapes in reasons.items():
        where = "every case" if shapes == everything else "; ".join(sorted(shapes))
        lines.append(f"- {what} [{where}]")
    return "\n".join(lines)


def fastest(rows: list[dict[str, Any]], column: str) -> tuple[str, Any]:
    """The setting with the least time, and that time; two empty texts if none ran."""
    ran = [(float(row[column]), row["setting"]) for row in rows if row[column] != ""]
    return (min(ran)[1], min(ran)[0]) if ran else ("", "")


def in_ms(value: Any) -> str:
    return "–" if value == "" else f"{float(value):.3g} ms" if float(value) < 100 else f"{float(value):.0f} ms"


def ratio(value: Any, base: Any) -> str:
    return "–" if "" in (value, base) else f"{float(value) / float(base):.2f}"


def shape_of(row: dict[str, Any]) -> Shape:
    names = ("images", "tokens", "dim", "hidden", "num_experts", "k")
    return Shape(*(int(row[name]) for name in names))


def main(
    threads: tuple[int, ...] = (1, 2),
    shapes: tuple[int, ...] = tuple(range(len(SHAPES))),
    seconds: float = SECONDS,
    clock: Literal["wall", "cpu"] = "wall",
    out: Path = RESULTS,
) -> None:
    """Measure every layer; print a table, and write it row by row.

    Args:
        threads: Numbers of threads; each is measured.
        shapes: Which of the shapes, by number from 0.
        seconds: About how long each layer is measured, on average.
        clock: wall, or cpu for processor time, with one thread on a busy machine.
        out: CSV file that is written.
    """
    if clock == "cpu" and threads != (1,):
        raise SystemExit("--clock cpu counts the time of all threads: give --threads 1")
    rows: list[dict[str, Any]] = []
    families: tuple[Family, ...] = ("mlp", "gated", "soft")
    for count in threads:
        torch.set_num_threads(count)
        for number in shapes:
            for family in families:
                rows += measure(family, SHAPES[number], seconds=seconds, clock=clock)
                Table(out).write(rows)
    print(f"{processor()}; kernels: {vismoe.kernels_in_use()}; PyTorch {torch.__version__}; {clock} time\n")
    print(as_table(rows))


if __name__ == "__main__":
    tyro.cli(main)
