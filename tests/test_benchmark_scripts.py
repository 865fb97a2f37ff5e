"""Promise: the scripts that compare layers run, their rows say what could not run, and layers that are compared compute
the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_device
import layer_speed
import peers
import pytest
import torch
from peers import NotRunError, Peer, Shape
from table import Table
from torch import nn

import vismoe
from vismoe.kernels import native

pytestmark = pytest.mark.benchmarks

RESULTS = Path(layer_speed.__file__).parent / "results"
SMALL = {1: Shape(2, 12, 16, 32, 4, 1), 2: Shape(2, 12, 16, 32, 4, 2)}


@pytest.mark.parametrize(
    ("peer", "k"),
    [(peer, k) for peer in peers.PEERS for k in SMALL if peer.family != "soft" or k == 1],
    ids=lambda value: f"{value.library}, {value.setting}" if isinstance(value, Peer) else None,
)
def test_a_peer_computes_what_vismoe_computes(peer: Peer, k: int) -> None:
    """With the same weights: outputs and gradients of inputs. Where it cannot run, the reason is one line."""
    torch.manual_seed(0)
    shape = SMALL[k]
    ours = peers.reference(peer.family, shape)
    x = peers.source(shape, "cpu", torch.float32)()
    failure: Exception | None = None
    try:
        theirs = peer.build(ours, shape)
        theirs(x)
    except Exception as error:
        failure = error
    if failure is not None:
        assert 10 < len(peers.reason(failure)) <= 160
        assert "\n" not in peers.reason(failure)
        assert isinstance(failure, NotRunError | ImportError) or peer.setting == "deepgemm"
        return
    found = []
    for layer in (ours, theirs):
        tokens = x.clone().requires_grad_()
        y = layer(tokens)
        # A gradient across the token: soft-moe-pytorch's normalisation has none along it.
        y.square().sum().backward()
        grad = tokens.grad
        assert grad is not None
        along = (grad * x).sum(-1, keepdim=True) * x / x.square().sum(-1, keepdim=True)
        found.append((y.detach(), grad - along if peer.family == "soft" else grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-4 * float(mine.abs().max()))


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0


class Halfway(nn.Module):
    """Right forward, without a gradient."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x).detach()
        return y


def failing(*_: Any) -> nn.Module:
    raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")


def test_what_cannot_run_has_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """None disappears: not a missing package, nor a layer that computes something else, nor one without gradient."""
    made = {
        "missing": failing,
        "wrong": lambda layer, shape: Wrong(),
        "halfway": lambda layer, shape: Halfway(layer),
    }
    monkeypatch.setattr(peers, "PEERS", tuple(Peer("mlp", "other", name, build) for name, build in made.items()))
    rows = {row["setting"]: row for row in peers.measure("mlp", SMALL[1], seconds=0.001)}
    assert list(rows) == ["as it is", "optimized", *made]
    assert rows["as it is"]["forward_ms"] > 0 < rows["as it is"]["forward_backward_ms"]
    assert (rows["optimized"]["forward_ms"] != "") == (native() is not None)
    assert rows["missing"]["why_not"] == "deepspeed is not installed: pip install 'vismoe[bench]'"
    assert rows["wrong"]["why_not"].startswith("its outputs differ from vismoe's by 1.0e+00")
    assert rows["halfway"]["forward_ms"] > 0
    assert rows["halfway"]["forward_backward_ms"] == ""
    assert rows["halfway"]["why_not"].startswith("forward and backward: RuntimeError: element 0")
    table = peers.as_table(list(rows.values()))
    assert all(row["why_not"] in table for row in rows.values())
    soft = peers.measure("soft", SMALL[2], seconds=0.001)
    assert {row["why_not"] for row in soft} == {"soft routing has no k"}


def test_the_table_of_layers_has_its_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layer_speed, "CASES", (layer_speed.Case(8, 16, 32, 4, 1, optimized=1e9),))
    before = torch.get_num_threads()
    layer_speed.main((1,), tmp_path / "layers.csv", seconds=0.001)
    torch.set_num_threads(before)
    header = (RESULTS / "layer_speed.csv").read_text().partition("\n")[0]
    assert (tmp_path / "layers.csv").read_text().partition("\n")[0] == header


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_script_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_device.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_dry_run(tmp_path: Path) -> None:
    """Every part runs on a CPU; the table names the processor, and no row is empty. In a process without the run-time
    type checks of conftest.py, which break `fullgraph=True`."""
    out = tmp_path / "cuda.csv"
    command = [sys.executable, cuda_device.__file__, "--device", "cpu", "--seconds", "0.001", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Table(out).rows()
    assert {row["part"] for row in rows} == set(cuda_device.PARTS) - {"peers"}
    for row in rows:
        assert row["device"].endswith("(dry run)")
        assert row["milliseconds"] or row["note"], row
        assert row["part"] not in ("layers", "compile") or row["ratio"], row
    assert "passed" in next(row["note"] for row in rows if row["part"] == "tests")
    others = Table(tmp_path / "cuda_peers.csv").rows()
    assert {row["family"] for row in others} == {"mlp", "gated", "soft"}
    assert all(row["forward_ms"] or row["why_not"] for row in others)


def test_a_wait_is_found() -> None:
    """A step that reads a value on the meta device is named by its line; another error is no wait."""
    x = torch.empty(3, device="meta")
    assert cuda_device.waits(lambda: None, "meta") == []
    for read in (lambda: x.sum().item(), lambda: x.tolist(), lambda: bool(x[0] > 0), lambda: x.nonzero(), x.cpu):
        (place,) = cuda_device.waits(lambda read=read: print(read()), "meta")
        assert place.startswith("test_benchmark_scripts.py:")

    def broken() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        cuda_device.waits(broken, "meta")


def test_routers_of_the_script_are_vismoe_s() -> None:
    """Each can be built for the script's shapes."""
    for make in cuda_device.ROUTERS.values():
        for plan in (cuda_device.FULL, cuda_device.TINY):
            assert isinstance(make(plan.peers[0]), vismoe.moe.Router)
