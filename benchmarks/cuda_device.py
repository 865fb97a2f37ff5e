"""Tests and measures vismoe on a CUDA device, by one command.

    python benchmarks/cuda_device.py                    # some minutes of a device
    python benchmarks/cuda_device.py --device cpu       # a dry run with tiny shapes: does this script work?

| part | what |
| --- | --- |
| tests | the tests with the mark `cuda` |
| waits | where one training step waits for the device: of a layer by each router, of a network, of vismoe.train |
| layers | a sparse layer ÷ the dense MLP with the same MACs, at the shapes of ViT-S, B and L with 8, 32, 128 experts |
| compile | torch.compile: agreement with eager, and time ÷ eager |
| peers | other libraries' layers (benchmarks/peers.py) |

Forward is measured without gradient with weights of the type, forward and backward under autocast. A case that does not
fit into memory has a row that says so. Writes results/cuda.csv and results/cuda_peers.csv, and prints tables that name
the device. Exit status: 0; 1 if a test failed, or a layer's or network's step waits; 2 without a device.

(A file called cuda.py here would hide NVIDIA's package `cuda` from torch.)
"""

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import peers
import torch
import tyro
from peers import Shape, forward_backward, reason
from table import Table
from timing import Side, medians, processor
from torch import Tensor, nn
from torch.nn import functional as F

import vismoe
from vismoe.parallel import Mesh
from vismoe.recipes import find_recipe
from vismoe.tasks import Classification
from vismoe.training.state import begin
from vismoe.training.step import Trainer

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "cuda.csv"
Part = Literal["tests", "waits", "layers", "compile", "peers"]
PARTS: tuple[Part, ...] = ("tests", "waits", "layers", "compile", "peers")
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 0.3
"""About how long each side of a case is measured, on average."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    - `layers`: shapes of the part "layers".
    - `compiled`, `peers`: the shapes of the parts "compile" and "peers".
    - `network`, `batch_size`: the network whose step is looked at.
    """

    layers: tuple[Shape, ...]
    compiled: tuple[Shape, ...]
    peers: tuple[Shape, ...]
    network: str
    batch_size: int


WIDTHS = {"ViT-S": 384, "ViT-B": 768, "ViT-L": 1024}
FULL = Plan(
    layers=tuple(Shape(32, 196, dim, 4 * dim, experts, 1) for dim in WIDTHS.values() for experts in (8, 32, 128)),
    compiled=(Shape(32, 196, 384, 1536, 8, 1), Shape(32, 196, 768, 3072, 32, 2)),
    peers=(Shape(32, 196, 384, 1536, 8, 1), Shape(32, 196, 384, 1536, 8, 2), Shape(32, 196, 768, 3072, 32, 1)),
    network="vmoe_small_patch16_224_every2_e8",
    batch_size=32,
)
TINY = Plan(
    layers=(Shape(2, 9, 16, 32, 4, 1),),
    compiled=(Shape(2, 9, 16, 32, 4, 2),),
    peers=(Shape(2, 8, 16, 32, 4, 1),),
    network="vmoe_pico_patch2_8_every2_e8",
    batch_size=2,
)
ROUTERS: dict[str, Callable[[Shape], nn.Module]] = {
    "TopKRouter": lambda shape: vismoe.TopKRouter(shape.dim, shape.num_experts, shape.k),
    "TopKRouter, losses, capacity": lambda shape: vismoe.TopKRouter(
        shape.dim, shape.num_experts, shape.k, balance="loss", noise_std=1.0, capacity_factor=1.05, batch_priority=True
    ),
    "SigmoidRouter": lambda shape: vismoe.SigmoidRouter(shape.dim, shape.num_experts, shape.k),
    "ExpertChoiceRouter": lambda shape: vismoe.ExpertChoiceRouter(shape.dim, shape.num_experts),
    "SoftRouter": lambda shape: vismoe.SoftRouter(shape.dim, shape.num_experts),
}


def name_of(device: str) -> str:
    """The device by name."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{processor()} (dry run)"


def row(part: Part, case: str, dtype: Any, what: str, **values: Any) -> dict[str, Any]:
    """A row of the table: milliseconds, the baseline's milliseconds, their ratio, and a note."""
    empty = {"milliseconds": "", "compared_with": "", "compared_milliseconds": "", "ratio": "", "note": ""}
    name = str(dtype).removeprefix("torch.")
    return {"device": "", "part": part, "case": case, "dtype": name, "what": what, **empty, **values}


def compared(ms: dict[str, float], ours: str, other: str) -> dict[str, Any]:
    return {
        "milliseconds": round(ms[ours], 4),
        "compared_with": other,
        "compared_milliseconds": round(ms[other], 4),
        "ratio": round(ms[ours] / ms[other], 3),
    }


def test(device: str) -> Iterator[dict[str, Any]]:
    """The tests with the mark `cuda`, in a process of their own."""
    files = [
        str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.cuda" in file.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"VISMOE_TEST_DEVICE": device}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    last = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
    yield row("tests", "pytest -m cuda", "", "passed" if done.returncode == 0 else "FAILED", note="".join(last))


def measure_layers(plan: Plan, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Each sparse layer beside the dense MLP with the same MACs."""
    for shape in plan.layers:
        for dtype in DTYPES:
            for what, run in (("forward", forward_only), ("forward + backward", forward_backward)):
                try:
                    sparse, dense, inputs = pair(shape, device)
                    context = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
                    if what == "forward":
                        sparse, dense = sparse.to(dtype).eval(), dense.to(dtype)
                        sides: dict[str, Side] = {"sparse": (run, sparse), "dense": (run, dense)}
                        ms = medians(sides, lambda inputs=inputs, dtype=dtype: inputs().to(dtype), seconds)
                    else:
                        with context:
                            ms = medians({"sparse": (run, sparse), "dense": (run, dense)}, inputs, seconds)
                    yield row("layers", str(shape), dtype, what, **compared(ms, "sparse", "dense"))
                except Exception as error:
                    yield row("layers", str(shape), dtype, what, note=reason(error))


def pair(shape: Shape, device: str) -> tuple[nn.Module, nn.Module, Callable[[], Tensor]]:
    """A sparse layer, a dense MLP k times as wide, and a source of inputs."""
    torch.manual_seed(0)
    with torch.device(device):
        router = vismoe.TopKRouter(shape.dim, shape.num_experts, shape.k, balance="none")
        sparse = vismoe.MoE(router, vismoe.MLPExperts(shape.dim, shape.hidden, shape.num_experts))
        wide = shape.k * shape.hidden
        dense = nn.Sequential(nn.Linear(shape.dim, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, shape.dim))
    return sparse, dense, lambda: torch.randn(shape.images, shape.tokens, shape.dim, device=device)


def forward_only(module: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        module(x)


def measure_compiled(plan: Plan, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """The compiled layer beside the eager one. In a dry run nothing is generated, only traced."""
    backend = "inductor" if device == "cuda" else "aot_eager"
    for shape in plan.compiled:
        for dtype in DTYPES:
            try:
                sparse, _, inputs = pair(shape, device)
                compiled: Any = torch.compile(sparse, fullgraph=True, backend=backend)
                with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    difference = disagreement(sparse, compiled, inputs())
                    sides: dict[str, Side] = {
                        "compiled": (forward_backward, compiled),
                        "eager": (forward_backward, sparse),
                    }
                    ms = medians(sides, inputs, seconds)
                note = f"largest difference of outputs and gradients {difference:.1e}"
                values = compared(ms, "compiled", "eager")
                yield row("compile", str(shape), dtype, "forward + backward", **values, note=note)
            except Exception as error:
                yield row("compile", str(shape), dtype, "forward + backward", note=reason(error))


def disagreement(eager: nn.Module, compiled: nn.Module, x: Tensor) -> float:
    """Largest difference of outputs and gradients, relative to the largest value of each tensor."""
    found = []
    for module in (eager, compiled):
        eager.zero_grad()
        y = module(x)
        y.square().mean().backward()
        found.append([y.detach(), *(p.grad.clone() for p in eager.parameters() if p.grad is not None)])
    pairs = zip(*found, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in pairs)


def look_for_waits(plan: Plan, device: str) -> Iterator[dict[str, Any]]:
    """Where training steps wait for the device. In a dry run steps run on the meta device, where the first value that
    is read is an error; that of vismoe.train needs autocast, which that device lacks, and is only run."""
    place = device if device == "cuda" else "meta"
    shape = plan.peers[0]
    for dtype in DTYPES:
        steps = {f"layer, {name}": layer_step(make, shape, place, dtype) for name, make in ROUTERS.items()}
        steps[plan.network] = network_step(plan, place, dtype)
        for name, step in steps.items():
            try:
                note = "; ".join(waits(step, place)) or "none"
            except Exception as error:
                note = reason(error)
            yield row("waits", name, dtype, "a training step", note=note)
        try:
            step = trainer_step(plan, device, dtype)
            note = "; ".join(waits(step, device)) or "none" if device == "cuda" else ran(step)
        except Exception as error:
            note = reason(error)
        yield row("waits", f"vismoe.train, {plan.network}", dtype, "a training step", note=note)


def waits(step: Callable[[], None], device: str) -> list[str]:
    """The lines at which a step waits for the device."""
    if device == "meta":
        try:
            step()
        except RuntimeError as error:
            # Operators whose outputs' shapes depend on values are not implemented there.
            if not isinstance(error, NotImplementedError) and "meta tensor" not in str(error).lower():
                raise
            return [place_of(traceback.extract_tb(error.__traceback__))]
        return []
    step()  # the first one loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]


def ran(step: Callable[[], None]) -> str:
    step()
    return "ran; where it waits is seen on a CUDA device alone"


def place_of(frames: list[traceback.FrameSummary]) -> str:
    """The last line that is not torch's."""
    torch_s = str(Path(torch.__file__).parent)
    frame = [frame for frame in frames if not frame.filename.startswith(torch_s)][-1]
    return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"


@contextmanager
def precision(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Autocast, where a device has it."""
    if device == "meta":
        yield
        return
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


def layer_step(make: Callable[[Shape], nn.Module], shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """A step of AdamW for one layer, with its router's losses."""
    router: Any = make(shape)
    layer = vismoe.MoE(router, vismoe.MLPExperts(shape.dim, shape.hidden, shape.num_experts)).to(device)
    x = torch.randn(shape.images, shape.tokens, shape.dim, device=device)
    if device == "meta":
        layer, x = layer.to(dtype), x.to(dtype)
    optimizer = torch.optim.AdamW(layer.parameters())

    def step() -> None:
        with vismoe.record(layer) as routing, precision(dtype, device):
            y = layer(x)
        (y.float().square().mean() + routing.auxiliary_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def network_step(plan: Plan, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """A step of a bare loop: cross-entropy, clipping, AdamW."""
    network = vismoe.create_model(plan.network).train().to(device)
    batch = a_batch(network, plan.batch_size, device)
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        with precision(dtype, device):
            logits = network(batch["image"])
        F.cross_entropy(logits.float(), batch["label"]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer_step(plan: Plan, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """A step of vismoe's own training."""
    network = vismoe.create_model(plan.network).train().to(device)
    batch = a_batch(network, plan.batch_size, device)
    recipe = replace(find_recipe("digits"), dtype=str(dtype).removeprefix("torch."))
    classes = [str(number) for number in range(1000)]
    trainer = Trainer(recipe, begin(network, recipe), Classification(classes), Mesh(), print)

    def step() -> None:
        trainer.state.step += 1
        trainer.step(dict(batch), log_now=False)

    return step


def a_batch(network: Any, size: int, device: str) -> dict[str, Tensor]:
    images = torch.randn(size, *network.pretrained_cfg["input_size"], device=device)
    return {"image": images, "label": torch.zeros(size, dtype=torch.int64, device=device)}


def measure_peers(plan: Plan, device: str, seconds: float) -> list[dict[str, Any]]:
    families: tuple[peers.Family, ...] = ("mlp", "gated", "soft")
    rows: list[dict[str, Any]] = []
    for shape in plan.peers:
        for dtype in DTYPES:
            for family in families:
                rows += peers.measure(family, shape, device, dtype, seconds)
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| part | case | type | what | ms | compared with | ratio | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        other = f"{row['compared_with']}, {row['compared_milliseconds']} ms" if row["compared_with"] else ""
        names = ("part", "case", "dtype", "what", "milliseconds")
        cells = [*(str(row[name]) for name in names), other, str(row["ratio"]), row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    device: Literal["cuda", "cpu"] = "cuda",
    parts: tuple[Part, ...] = PARTS,
    seconds: float = SECONDS,
    out: Path = RESULTS,
) -> int:
    """Test and measure; print tables and write them.

    Args:
        device: cuda, or cpu for a dry run with tiny shapes, which writes nothing unless --out is given.
        parts: What is done.
        seconds: About how long each side of a case is measured, on average.
        out: CSV file that is written; peers' is beside it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; --device cpu is a dry run", file=sys.stderr)
        return 2
    plan = FULL if device == "cuda" else TINY
    if device == "cpu":
        torch.set_num_threads(1)
    print(f"{name_of(device)}; PyTorch {torch.__version__}; vismoe {vismoe.__version__}\n", flush=True)
    rows: list[dict[str, Any]] = []
    sources: dict[Part, Callable[[], Iterator[dict[str, Any]]]] = {
        "tests": lambda: test(device),
        "waits": lambda: look_for_waits(plan, device),
        "layers": lambda: measure_layers(plan, device, seconds),
        "compile": lambda: measure_compiled(plan, device, seconds),
    }
    for part, source in sources.items():
        for made in source() if part in parts else ():
            rows.append(made | {"device": name_of(device)})
            print("  ".join(str(value) for value in made.values() if value != ""), flush=True)
    others = measure_peers(plan, device, seconds) if "peers" in parts else []
    writes = device == "cuda" or out != RESULTS
    for found, path, text in (
        (rows, out, as_table(rows)),
        (others, out.with_name(f"{out.stem}_peers.csv"), peers.as_table(others) if others else ""),
    ):
        if found:
            print(f"\n{text}")
        if found and writes:
            Table(path).write([row | {"device": name_of(device)} for row in found])
    bad = [row for row in rows if row["what"] == "FAILED"]
    waiting = [row for row in rows if row["part"] == "waits" and row["note"] != "none"]
    return int(bool(bad or [row for row in waiting if not row["case"].startswith("vismoe.train")]))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
